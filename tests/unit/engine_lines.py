"""What real engines printed, by version; shortened in number of lines, not in the lines."""

BACKUP = {
    "0.14": (
        [
            b'{"message_type":"status","percent_done":0,"total_files":1,"total_bytes":2}',
            b'{"message_type":"status","action":"scan_finished","item":"","duration":0.205758138,"data_size":3145739,"data_size_in_repo":0,"metadata_size":0,"metadata_size_in_repo":0,"total_files":6}',
            b'{"message_type":"verbose_status","action":"new","item":"/s/canary","duration":0.000344963,"data_size":2,"data_size_in_repo":84,"metadata_size":0,"metadata_size_in_repo":0,"total_files":0}',
            b'{"message_type":"verbose_status","action":"new","item":"/s/","duration":0.03,"data_size":0,"data_size_in_repo":0,"metadata_size":2479,"metadata_size_in_repo":640,"total_files":0}',
            b'{"message_type":"status","percent_done":0.9999977747677096,"total_files":6,"files_done":4,"total_bytes":3145739,"bytes_done":3145732,"error_count":2,"current_files":["/s/sub/big"]}',
            b'{"message_type":"summary","files_new":5,"files_changed":0,"files_unmodified":0,"dirs_new":6,"dirs_changed":0,"dirs_unmodified":0,"data_blobs":4,"tree_blobs":7,"data_added":3150059,"total_files_processed":5,"total_bytes_processed":3145732,"total_duration":0.259491568,"snapshot_id":"b8e2034c"}',
        ],
        [
            b"/s/missing does not exist, skipping",
            b'{"message_type":"error","error":{},"during":"scan","item":"/s/closed"}',
            b'{"message_type":"error","error":{},"during":"archival","item":"/s/closed"}',
            b'{"message_type":"error","error":{"Op":"open","Path":"/s/secret","Err":13},"during":"archival","item":"/s/secret"}',
            b"Warning: at least one source file could not be read",
        ],
    ),
    "0.18": (
        [
            b'{"message_type":"verbose_status","action":"scan_finished","item":"","duration":0.002807928,"data_size":3145749,"data_size_in_repo":0,"metadata_size":0,"metadata_size_in_repo":0,"total_files":6}',
            b'{"message_type":"verbose_status","action":"new","item":"/s/canary","duration":0.009459644,"data_size":0,"data_size_in_repo":0,"metadata_size":0,"metadata_size_in_repo":0,"total_files":0}',
            b'{"message_type":"status","percent_done":0.6937490781195164,"seconds_remaining":3,"total_files":6,"files_done":4,"total_bytes":3145744,"bytes_done":2182357,"error_count":2,"current_files":["/s/sub/big"]}',
            b'{"message_type":"summary","files_new":5,"files_changed":0,"files_unmodified":0,"dirs_new":6,"dirs_changed":0,"dirs_unmodified":0,"data_blobs":5,"tree_blobs":7,"data_added":3150131,"data_added_packed":3148525,"total_files_processed":5,"total_bytes_processed":3145737,"total_duration":0.706166102,"backup_start":"2026-11-21T04:41:50.616602476Z","backup_end":"2026-11-21T04:41:51.322768577Z","snapshot_id":"a07edbed21bbe4e90cc188432c55bcfa0c53b6a07d47ac00112832ca14720a3b"}',
        ],
        [
            b"/s/missing does not exist, skipping",
            b'{"message_type":"error","error":{"message":"openfile for readdirnames failed: open /s/closed: permission denied"},"during":"scan","item":"/s/closed"}',
            b'{"message_type":"error","error":{"message":"openfile for readdirnames failed: open /s/closed: permission denied"},"during":"archival","item":"/s/closed"}',
            b'{"message_type":"error","error":{"message":"open /s/secret: permission denied"},"during":"archival","item":"/s/secret"}',
            b'{"message_type":"exit_error","code":3,"message":"Warning: at least one source file could not be read"}',
        ],
    ),
}

# Version, exit code, last words → the failure.
FAILURES = [
    ("0.14", 1, "Fatal: wrong password or no key found", "wrong-password"),
    ("0.18", 12, "Fatal: wrong password or no key found", "wrong-password"),
    (
        "0.14",
        1,
        "Fatal: unable to open config file: stat /r/config: no such file or directory\nIs there a repository at the following location?\n/r",
        "no-repository",
    ),
    (
        "0.18",
        10,
        '{"message_type":"exit_error","code":10,"message":"Fatal: repository does not exist: unable to open config file: stat /r/config: no such file or directory\\nIs there a repository at the following location?\\n/r"}',
        "no-repository",
    ),
    (
        "0.18",
        1,
        "Stat(<config/>) failed: stat /r/config: permission denied\nFatal: unable to open config file: stat /r/config: permission denied\nIs there a repository at the following location?\n/r",
        "denied",
    ),
    (
        "0.14",
        1,
        "Fatal: unable to create lock in backend: repository is already locked exclusively by PID 7 on vm by root (UID 0, GID 0)",
        "locked",
    ),
    (
        "0.14",
        1,
        "Save(<data/abc>) returned error, retrying after 552ms: write /r/data: no space left on device\nFatal: unable to save snapshot: write /r: no space left on device",
        "no-space",
    ),
    ("0.14", 1, "Fatal: repository contains errors", "damaged"),
    (
        "0.18",
        1,
        "Load(<data/d93949dc52>, 43, 0) failed: open /r/data/d9/d93949: no such file or directory\nFatal: There were 6 errors",
        "damaged",
    ),
    (
        "0.18",
        1,
        'Fatal: unable to open config file: Head "http://127.0.0.1:1/config": dial tcp 127.0.0.1:1: connect: connection refused',
        "unreachable",
    ),
    (
        "0.14",
        1,
        "Fatal: unable to open config file: unexpected HTTP response (403): 403 Forbidden",
        "denied",
    ),
    (
        "0.18",
        1,
        "Fatal: unable to open repository at rclone:capkeep:: error talking HTTP to rclone: exit status 1",
        "unreachable",
    ),
    ("0.18", 1, "Fatal: something new", "engine"),
    ("0.18", 2, "runtime error: index out of range", "engine"),
    ("0.18", -9, "", "interrupted"),
    ("0.18", -2, "", "stopped"),
    ("0.19", 130, "", "stopped"),
    ("0.18", 143, "", "stopped"),
    ("0.18", 137, "", "interrupted"),
]
