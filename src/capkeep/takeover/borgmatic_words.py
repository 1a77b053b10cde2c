"""Keys of borgmatic: why those that are no settings of ours are not carried over."""

from typing import Final

from capkeep.takeover.nodes import keyed

LEFT: Final = {
    **keyed(("exclude_caches",), "capkeep does not look for CACHEDIR.TAG | name the directories in exclude"),
    **keyed(("exclude_if_present", "keep_exclude_tags"),
            "capkeep does not look for marker files | name the directories in exclude"),
    **keyed(("exclude_nodump",), "the nodump flag is not looked at | name the files in exclude"),
    **keyed(("read_special",), 'what a device or pipe gives is a dump here | [dumps.NAME] kind = "command"'),
    **keyed(("numeric_ids", "numeric_owner", "atime", "ctime", "birthtime", "flags", "bsd_flags",
             "files_cache", "files_changed", "chunker_params", "compression", "recompress", "umask",
             "checkpoint_interval", "checkpoint_volume", "upload_buffer_size", "remote_rate_limit",
             "use_chunks_archive", "borg_files_cache_ttl", "borg_exit_codes",
             "relocated_repo_access_is_ok", "unknown_unencrypted_repo_access_is_ok",
             "check_i_know_what_i_am_doing", "extra_borg_options", "archive_username",
             "unsafe_skip_path_validation_before_create", "source_directories_must_exist",
             "borg_key_file", "compact_threshold", "msgpack_version_check"),
            "capkeep does not hand this to borg"),
    **keyed(("check_last",), "all archives are checked"),
    **keyed(("zfs", "btrfs", "lvm"), "no snapshots of file systems are made"),
}  # fmt: skip
NOTED: Final = {
    **keyed(("archive_name_format", "prefix", "match_archives"),
            "capkeep names archives itself; those that are there already are left alone by its rules"),
    **keyed(("verbosity", "syslog_verbosity", "log_file_verbosity", "log_file", "log_file_format",
             "monitoring_verbosity", "log_json", "progress", "statistics", "quick_statistics",
             "list_details", "color", "file_list_format", "archive_list_format",
             "debug_passphrase", "display_passphrase"),
            "capkeep records and shows every run by itself"),
    **keyed(("borg_base_directory", "borg_config_directory", "borg_cache_directory",
             "borg_security_directory", "borg_keys_directory", "borgmatic_source_directory",
             "user_runtime_directory", "user_state_directory", "temporary_directory"),
            "capkeep has directories of its own; an existing key file is to be brought there"),
    **keyed(("bootstrap", "default_actions", "systemd", "container", "keepassxc", "onepassword",
             "remove_existing_index"),
            "is about the program itself"),
}  # fmt: skip
REPOSITORY_NOTED: Final = keyed(
    ("encryption", "append_only", "storage_quota", "make_parent_directories", "id_hash",
     "key_location"),
    "is for new repositories; towards whoever reads files every repository is append-only",
)  # fmt: skip
