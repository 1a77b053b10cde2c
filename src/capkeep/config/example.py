"""An annotated configuration to begin with; a test loads it as it stands."""

from typing import Final

EXAMPLE: Final = """\
# capkeep: what to keep, where, and what counts as complete.
# After a change:  capkeep config check  &&  capkeep apply
# Drop-ins in conf.d/*.toml next to this file may add repositories and jobs.

# ---------------------------------------------------------------- where

[repositories.local]
engine = "restic"
location = "/srv/backup/restic"
# Secrets are never written here. Make the file so:
#   install -d -m 700 /etc/capkeep/secrets
#   ( umask 077; head -c 32 /dev/urandom | base64 > /etc/capkeep/secrets/local )
# and keep a copy of it somewhere else: without it the backup is worthless.
password = { file = "/etc/capkeep/secrets/local" }
# Other sources: { credential = "NAME" } (systemd-creds), { command = ["/usr/bin/pass", "NAME"] }

# [repositories.offsite]
# engine = "restic"
# location = "s3:https://s3.example.org/my-bucket"     # or rest:https://…, rclone:remote:path
# password = { file = "/etc/capkeep/secrets/offsite" }
# credentials.AWS_ACCESS_KEY_ID = { file = "/etc/capkeep/secrets/s3-id" }
# credentials.AWS_SECRET_ACCESS_KEY = { credential = "s3-key" }

# [repositories.nas]
# engine = "restic"
# location = "sftp:backup@nas.example.org:/volume/restic"
# password = { file = "/etc/capkeep/secrets/nas" }
# options.identity = { file = "/etc/capkeep/secrets/id_ed25519" }
# options.known-hosts = "/etc/capkeep/known_hosts"     # from ssh-keyscan, compared by you

# ---------------------------------------------------------------- what

[defaults]                        # every job that does not say otherwise
repositories = ["local"]
exclude = ["**/.cache", "**/lost+found"]
timeout = "12h"
max-age = "36h"                   # `capkeep status` calls an older backup late

[jobs.system]
include = ["/etc", "/home", "/root", "/srv", "/usr/local", "/var"]
exclude = ["**/.cache", "**/lost+found", "/var/cache", "/var/tmp"]   # replaces the default list
# exclude-from = ["excludes.txt"] # one pattern a line, next to this file
may-miss = ["/home/*/.gvfs"]      # anything else that cannot be read makes a run `partial`
allow-empty = ["/srv"]            # any other empty include makes a run `partial`
one-file-system = false
schedule = ["03:00"]              # several are possible; `capkeep plan` shows the next times
spread = "30m"                    # begin up to so much later, on each host by another amount
# on-battery = true               # scheduled runs are left out on battery, unless asked for
# on-metered = true               # the same for remote repositories over a metered network
max-shrink = "50%"                # an include that lost more than this is suspect
tags = ["system"]
# Databases are dumped before: [dumps.postgresql] and more, see docs/how-to/databases.md
# Your own commands run before and after: [hooks.NAME], see docs/how-to/hooks.md

# [jobs.system.check]             # after each backup; or schedule = ["Sun 04:00"]
# read-data = "rotate 30d"        # the next part each time: all data is read every 30 days

# [jobs.system.retention]         # without it everything stays
# keep-daily = 14                 # `capkeep retention --dry-run` shows what stays, and why
# keep-weekly = 8
# keep-monthly = 12

# ---------------------------------------------------------------- who is told

# [notify.mail]                   # then:  capkeep notify test
# to = "admin@example.org"        # of every run that is not complete, with the log
# smtp = "mail.example.org:587"
# user = "backup@example.org"
# password = { file = "/etc/capkeep/secrets/mail" }

# [notify.healthchecks]           # of every start and end
# url = { file = "/etc/capkeep/secrets/healthchecks-url" }

# ---------------------------------------------------------------- how

[limits]                          # of every room
memory = "8GiB"
processes = 512
free-space = "256MiB"

[watch]                           # finds scheduled runs that did not happen
every = "10m"
grace = "15m"                     # a run that has not begun so long after its time is missed
"""
