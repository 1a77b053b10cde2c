"""The vault's front: restic's REST protocol, one policy, and the places behind it."""
