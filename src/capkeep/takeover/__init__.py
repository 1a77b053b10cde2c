"""Other programs' configurations, said in capkeep's words; what cannot be said is listed."""
