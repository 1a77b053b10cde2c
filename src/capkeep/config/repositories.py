"""A repository's table, checked against what its engine and its kind of location need."""

import os
from typing import Final

from capkeep.config import syntax
from capkeep.config.mistakes import Collector, Place, nearest
from capkeep.config.model import RepositoryConfig
from capkeep.config.secrets import check_secret, not_a_program
from capkeep.config.sources import Owner, open_at_once
from capkeep.config.syntax import SOURCE_HINT
from capkeep.config.validate import Checked
from capkeep.errors import RefusedError
from capkeep.kernel.ways import resolve
from capkeep.values import Location, SecretSource, ValueMistake, parse_location

PROGRAM_FOLDERS: Final = ("/usr/bin", "/usr/local/bin")
LATER_ENGINES: Final = ("borg", "rdiff-backup")
# Variables that would contradict what the configuration itself says (restic(1), Environment).
OWN_VARIABLES: Final = {
    "RESTIC_REPOSITORY": "location",
    "RESTIC_REPOSITORY_FILE": "location",
    "RESTIC_PASSWORD": "password",
    "RESTIC_PASSWORD_FILE": "password",
    "RESTIC_PASSWORD_COMMAND": "password",
}
SECRET_WORDS: Final = ("PASSWORD", "PASS", "PASSPHRASE", "SECRET", "TOKEN", "KEY")
OPTION_SCHEMES: Final = {
    "identity": ("sftp",),
    "known_hosts": ("sftp",),
    "port": ("sftp",),
    "ca_file": ("s3", "rest"),
    "region": ("s3",),
}

Table = Checked[syntax.Repository]


class RepositoryChecker:
    """Turns one table after another into values."""

    def __init__(self, program: str, owner: Owner, collector: Collector) -> None:
        self._program = program
        self._owner = owner
        self._collector = collector

    def check(self, name: str, table: Table, wrong: frozenset[str]) -> RepositoryConfig | None:
        """The repository as a value; None if it has no location that could be understood."""
        model = table.model
        self._engine(table, wrong)
        location = self._location(table, wrong)
        if table.gives("password"):
            check_secret(model.password, table.at("password"), self._owner, self._collector)
        elif "password" not in wrong:
            hint = f'write password = {{ file = "/etc/capkeep/secrets/{name}" }}'
            self._collector.mistake(table.at("password"), "the repository has no password", hint)
        for variable, source in model.credentials.items():
            place = table.at("credentials", variable)
            self._variable(variable, place)
            check_secret(source, place, self._owner, self._collector)
        for variable in model.environment:
            self._plain_variable(variable, table.at("environment", variable))
        if location is None:
            return None
        self._options(table, location, wrong)
        self._network(table, location)
        return _value(name, self._program, table, location)

    def _engine(self, table: Table, wrong: frozenset[str]) -> None:
        engine = table.model.engine
        place = table.at("engine")
        if engine == "restic" or "engine" in wrong:
            return
        if not engine:
            self._collector.mistake(place, "the engine is not said", 'write engine = "restic"')
        elif engine in LATER_ENGINES:
            self._collector.mistake(
                place, f"this capkeep does not run {engine} yet", 'write engine = "restic"'
            )
        else:
            guess = nearest(engine, ("restic",))
            hint = f'did you mean "{guess}"?' if guess else 'write engine = "restic"'
            self._collector.mistake(place, f"there is no engine {engine!r}", hint)

    def _location(self, table: Table, wrong: frozenset[str]) -> Location | None:
        place = table.at("location")
        if not table.gives("location"):
            if "location" not in wrong:
                hint = 'write location = "/srv/backup" or "sftp:user@host:/path", "s3:…", "rest:…"'
                self._collector.mistake(place, "the repository has no location", hint)
            return None
        try:
            location = parse_location(table.model.location)
        except ValueMistake as mistake:
            self._collector.mistake(place, mistake.problem, mistake.hint)
            return None
        if not location.is_local:
            return location
        try:
            return parse_location(resolve(location.path))
        except RefusedError as error:
            self._collector.mistake(place, str(error), error.hint)
            return None

    def _variable(self, variable: str, place: Place) -> None:
        if not variable.isidentifier() or not variable.isascii():
            self._collector.mistake(
                place, f"{variable!r} cannot be an environment variable", "use A-Z, 0-9 and _"
            )
        elif variable in OWN_VARIABLES:
            self._collector.mistake(
                place,
                f"{variable} is set by capkeep itself",
                f"write {OWN_VARIABLES[variable]} = …",
            )

    def _plain_variable(self, variable: str, place: Place) -> None:
        self._variable(variable, place)
        words = variable.upper().split("_")
        if words[-1] in SECRET_WORDS or "SECRET" in words:
            self._collector.mistake(
                place,
                "looks like a secret, and the configuration is no place for one",
                f"write credentials.{variable} = …: {SOURCE_HINT.removeprefix('write ')}",
            )

    def _options(self, table: Table, location: Location, wrong: frozenset[str]) -> None:
        options = table.model.options
        for field in options.model_fields_set:
            schemes = OPTION_SCHEMES[field]
            if location.scheme not in schemes:
                self._collector.mistake(
                    table.at("options", syntax.kebab(field)),
                    f"means nothing for {location.scheme} locations",
                    f"it is for {' and '.join(schemes)}: take it away",
                )
        if "identity" in options.model_fields_set:
            place = table.at("options", "identity")
            check_secret(options.identity, place, self._owner, self._collector)
        for field, path in (("known-hosts", options.known_hosts), ("ca-file", options.ca_file)):
            if path:
                self._public_file(path, table.at("options", field))
        if location.scheme == "sftp" and "options" not in wrong:
            self._ssh_needs(table, location)

    def _ssh_needs(self, table: Table, location: Location) -> None:
        given = table.model.options.model_fields_set
        if "identity" not in given:
            self._collector.mistake(
                table.at("options", "identity"),
                "an sftp location needs the private key to log in with",
                'write options.identity = { file = "/etc/capkeep/secrets/id_ed25519" }',
            )
        if not table.model.options.known_hosts:
            self._collector.mistake(
                table.at("options", "known-hosts"),
                "an sftp location needs the server's host key, or anybody could stand in for it",
                f"ssh-keyscan {location.host} > /etc/capkeep/known_hosts, compare the key, then"
                ' write options.known-hosts = "/etc/capkeep/known_hosts"',
            )
        if location.port and "port" in given and location.port != table.model.options.port:
            self._collector.mistake(
                table.at("options", "port"),
                f"the location itself says port {location.port}",
                "say it once",
            )

    def _public_file(self, path: str, place: Place) -> None:
        if not path.startswith("/"):
            self._collector.mistake(
                place, f"{path!r} is not an absolute path", f'write "/…/{path}"'
            )
            return
        try:
            with open(path, "rb", opener=open_at_once) as file:
                state = os.fstat(file.fileno())
        except OSError as error:
            hint = "name a file that is there and can be read"
            self._collector.mistake(place, f"{path} cannot be read: {error.strerror}", hint)
            return
        if unsafe := self._owner.unsafe_to_read(state):
            hint = f"{self._owner.chown} {path}; chmod 644 {path}"
            self._collector.mistake(place, f"{path} {unsafe}", hint)
        elif not state.st_mode & 0o004 and self._owner.uid == 0:
            hint = f"chmod 644 {path}: it holds no secret"
            self._collector.mistake(place, f"{path} cannot be read by the vault's user", hint)

    def _network(self, table: Table, location: Location) -> None:
        allowed = table.model.engine_network
        if location.engine_only and not allowed:
            self._collector.mistake(
                table.at("location"),
                f"only restic itself reaches {location.scheme}: locations, so the process that"
                " reads your files would need the network and the credentials",
                "write engine-network = true to accept that (every record will say it), or reach"
                ' the same place through the vault: location = "rclone:REMOTE:PATH" with'
                " environment.RCLONE_CONFIG_REMOTE_TYPE and credentials.RCLONE_CONFIG_REMOTE_…",
            )
        elif allowed and location.scheme in ("local", "sftp", "rclone"):
            self._collector.mistake(
                table.at("engine-network"),
                f"a {location.scheme} location is always reached through the vault",
                "take engine-network away",
            )


def _value(name: str, program: str, table: Table, location: Location) -> RepositoryConfig:
    model = table.model
    options = model.options
    return RepositoryConfig(
        name=name,
        engine=model.engine,
        program=program,
        location=location,
        password=model.password,
        credentials=tuple(model.credentials.items()),
        environment=tuple(model.environment.items()),
        identity=options.identity if options.identity != SecretSource() else None,
        known_hosts=options.known_hosts,
        ca_file=options.ca_file,
        port=options.port or location.port,
        region=options.region,
        engine_network=model.engine_network,
    )


def find_program(written: str, place: Place, collector: Collector) -> str:
    """The engine's absolute path; "" after a mistake."""
    if written:
        if not written.startswith("/"):
            collector.mistake(
                place, f"{written!r} is not an absolute path", "write /usr/bin/restic"
            )
        elif problem := not_a_program(written):
            collector.mistake(place, problem, "name the engine's program")
        return written
    for folder in PROGRAM_FOLDERS:
        if not not_a_program(f"{folder}/restic"):
            return f"{folder}/restic"
    collector.mistake(
        place,
        f"there is no restic in {' or '.join(PROGRAM_FOLDERS)}",
        "apt-get install restic, or write where it is: [engines.restic] program = …",
    )
    return ""
