"""A repository's table, checked against what its engine and its kind of location need."""

import os
import re
from collections.abc import Mapping
from typing import Final

from capkeep.config import pulled, syntax
from capkeep.config.expand import as_written
from capkeep.config.mistakes import Collector, Place, nearest
from capkeep.config.model import RepositoryConfig
from capkeep.config.owners import check_owners
from capkeep.config.secrets import check_secret, not_a_program
from capkeep.config.sources import Owner, open_at_once
from capkeep.config.syntax import SOURCE_HINT
from capkeep.config.validate import Checked
from capkeep.config.venv import check_environment, environment_of
from capkeep.engines import ENGINES
from capkeep.engines.base import Traits
from capkeep.errors import RefusedError
from capkeep.kernel.ways import resolve
from capkeep.values import Location, SecretSource, ValueMistake, parse_location

PROGRAM_FOLDERS: Final = ("/usr/bin", "/usr/local/bin")
SECRET_WORDS: Final = ("PASSWORD", "PASS", "PASSPHRASE", "SECRET", "TOKEN", "KEY", "SAS")
ENGINE_HINT: Final = "write engine = " + " or ".join(f'"{name}"' for name in ENGINES)
OPTION_SCHEMES: Final = {
    "identity": ("sftp", "ssh"),
    "known_hosts": ("sftp", "ssh"),
    "port": ("sftp", "ssh"),
    "ca_file": ("s3", "rest"),
    "region": ("s3",),
    "remote_path": ("ssh",),
}
LOGIN: Final = "identity"  # of credentials the one that is no variable: what ssh logs in with
_REMOTE_PROGRAM: Final = re.compile(r"[A-Za-z0-9_/~][A-Za-z0-9_./~+-]*")

Table = Checked[syntax.Repository]


class RepositoryChecker:
    """Turns one table after another into values."""

    def __init__(self, programs: Mapping[str, str], owner: Owner, collector: Collector) -> None:
        """`programs`: those of the engines that are used, by the engine's name."""
        self._programs = programs
        self._owner = owner
        self._collector = collector

    def check(self, name: str, table: Table, wrong: frozenset[str]) -> RepositoryConfig | None:
        """The repository as a value; None if it has no location that could be understood."""
        model = table.model
        traits = self._engine(table, wrong)
        if table.gives("pulled_by"):
            program = self._programs.get(model.engine, "")
            return pulled.check_repository(
                name, table, program, traits, self._owner, self._collector
            )
        location = self._location(table, traits, wrong)
        self._password(name, table, traits, wrong)
        tables = {"credentials": model.credentials, "keeper-credentials": model.keeper_credentials}
        for key, credentials in tables.items():
            for variable, source in credentials.items():
                place = table.at(key, variable)
                self._credential(key, variable, place, traits, location)
                check_secret(source, place, self._owner, self._collector)
        for variable in model.environment:
            self._plain_variable(variable, table.at("environment", variable), traits)
        if location is None:
            return None
        self._options(table, location, wrong)
        self._network(table, location)
        self._quota(table, traits, location)
        check_owners(table, traits, self._owner, self._collector)
        nobody = location.is_local or model.engine_network
        if model.keeper_credentials and nobody and not pulled.is_sealed(table):
            why = "nobody logs in there" if location.is_local else "there is no vault"
            self._collector.mistake(table.at("keeper-credentials"), why, "take it away")
        return _value(name, self._programs.get(model.engine, ""), table, location)

    def _engine(self, table: Table, wrong: frozenset[str]) -> Traits:
        """What is true of its engine; what is of restic after a mistake."""
        engine = table.model.engine
        place = table.at("engine")
        if engine in ENGINES:
            return ENGINES[engine].traits
        if "engine" in wrong:
            return ENGINES["restic"].traits
        if not engine:
            self._collector.mistake(place, "the engine is not said", ENGINE_HINT)
        else:
            guess = nearest(engine, tuple(ENGINES))
            hint = f'did you mean "{guess}"?' if guess else ENGINE_HINT
            self._collector.mistake(place, f"there is no engine {engine!r}", hint)
        return ENGINES["restic"].traits

    def _password(self, name: str, table: Table, traits: Traits, wrong: frozenset[str]) -> None:
        """Whoever keeps it, there is one where the engine knows any."""
        if pulled.is_sealed(table):
            pulled.check_sealed(table, traits, self._collector)
        elif table.gives("password"):
            if not traits.password:
                said = f"{table.model.engine} knows no password"
                self._collector.mistake(table.at("password"), said, "take it away")
            check_secret(table.model.password, table.at("password"), self._owner, self._collector)
        elif not {"password", "password-kept-by"} & wrong and traits.password:
            file = f"/etc/capkeep/secrets/{as_written(name)}"
            hint = f'write password = {{ file = "{file}" }}'
            self._collector.mistake(table.at("password"), "the repository has no password", hint)

    def _location(self, table: Table, traits: Traits, wrong: frozenset[str]) -> Location | None:
        place = table.at("location")
        if not table.gives("location"):
            if not {"location", "pulled-by"} & wrong:
                hint = 'write location = "/srv/backup" or "sftp:user@host:/path", "s3:…", "rest:…"'
                if traits.remote:
                    hint = 'write location = "/srv/backup" or "ssh://user@host/path"'
                self._collector.mistake(place, "the repository has no location", hint)
            return None
        try:
            location = parse_location(table.model.location)
        except ValueMistake as mistake:
            self._collector.mistake(place, mistake.problem, mistake.hint)
            return None
        if location.scheme not in traits.schemes:
            self._other_kind(table, location, traits)
            return None
        if not location.is_local:
            return location
        try:
            return parse_location(resolve(location.path))
        except RefusedError as error:
            self._collector.mistake(place, str(error), error.hint)
            return None

    def _other_kind(self, table: Table, location: Location, traits: Traits) -> None:
        """The location is of a kind that the engine cannot reach."""
        ways = {
            "local": '"/path"',
            "ssh": '"ssh://user@host/path"',
            "sftp": '"sftp:user@host:/path"',
        }
        hint = f"write {' or '.join(ways[s] for s in traits.schemes if s in ways)}"
        if location.scheme == "ssh" and "sftp" in traits.schemes:
            hint = f'write "sftp{location.text.removeprefix("ssh")}"'
        self._collector.mistake(
            table.at("location"),
            f"{traits.program} has no repositories at {location.scheme}: locations"
            + (f": {traits.only_here}" if traits.only_here else ""),
            f"{hint}, or take restic or borg for another host" if traits.only_here else hint,
        )

    def _credential(
        self, key: str, variable: str, place: Place, traits: Traits, location: Location | None
    ) -> None:
        """A variable of the remote's, or what the keeper logs in with."""
        by_key = location is not None and location.scheme in ("sftp", "ssh")
        if variable == LOGIN and key == "keeper-credentials" and by_key:
            return
        if variable == LOGIN:
            hint = "write options.identity = …" if by_key else "take it away"
            self._collector.mistake(place, f"{key} are environment variables", hint)
        elif location is not None and location.scheme == "ssh":
            said = "no variable goes along with ssh"
            hint = "the key is options.identity, the keeper's own keeper-credentials.identity"
            self._collector.mistake(place, said, hint)
        self._variable(variable, place, traits)

    def _variable(self, variable: str, place: Place, traits: Traits) -> None:
        own = dict(traits.own_variables)
        if not variable.isidentifier() or not variable.isascii():
            self._collector.mistake(
                place, f"{variable!r} cannot be an environment variable", "use A-Z, 0-9 and _"
            )
        elif variable in own:
            self._collector.mistake(
                place,
                f"{variable} is set by capkeep itself",
                f"write {own[variable]} = …",
            )

    def _plain_variable(self, variable: str, place: Place, traits: Traits) -> None:
        self._variable(variable, place, traits)
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
        if location.scheme in ("sftp", "ssh") and "options" not in wrong:
            self._ssh_needs(table, location)

    def _ssh_needs(self, table: Table, location: Location) -> None:
        given = table.model.options.model_fields_set
        if "identity" not in given:
            self._collector.mistake(
                table.at("options", "identity"),
                f"an {location.scheme} location needs the private key to log in with",
                'write options.identity = { file = "/etc/capkeep/secrets/id_ed25519" }',
            )
        if not table.model.options.known_hosts:
            self._collector.mistake(
                table.at("options", "known-hosts"),
                f"an {location.scheme} location needs the server's host key, or anybody could stand in"
                " for it",
                f"ssh-keyscan {_port(location)}{location.host} > /etc/capkeep/known_hosts, compare the"
                " key, then"
                ' write options.known-hosts = "/etc/capkeep/known_hosts"',
            )
        remote = table.model.options.remote_path
        if remote and not _REMOTE_PROGRAM.fullmatch(remote):
            self._collector.mistake(
                table.at("options", "remote-path"),
                f"{remote!r} is not the name or path of one program",
                'write it without options: "borg-1.4" or "/usr/local/bin/borg"',
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

    def _quota(self, table: Table, traits: Traits, location: Location) -> None:
        if not table.model.quota:
            return
        place = table.at("quota")
        if not location.is_local:
            hint = "set one where the repository is"
            self._collector.mistake(place, "the vault counts only what is in a directory", hint)
        elif not traits.quota:
            hint = "give the repository a filesystem, or a project quota, of its own"
            self._collector.mistake(place, f"{traits.program} has no quota", hint)

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
        elif allowed and location.scheme in ("local", "sftp", "rclone", "ssh"):
            self._collector.mistake(
                table.at("engine-network"),
                f"a {location.scheme} location is always reached through the vault",
                "take engine-network away",
            )


def _port(location: Location) -> str:
    return f"-p {location.port} " if location.port else ""


def _value(name: str, program: str, table: Table, location: Location) -> RepositoryConfig:
    model = table.model
    options = model.options
    return RepositoryConfig(
        name=name,
        engine=model.engine,
        program=program,
        environment_folder=environment_of(program) if program else "",
        location=location,
        password=model.password,
        credentials=tuple(model.credentials.items()),
        keeper_credentials=tuple(model.keeper_credentials.items()),
        environment=tuple(model.environment.items()),
        identity=options.identity if options.identity != SecretSource() else None,
        known_hosts=options.known_hosts,
        ca_file=options.ca_file,
        port=options.port or location.port,
        region=options.region,
        remote_path=options.remote_path,
        engine_network=model.engine_network,
        owners=model.owners,
        quota_bytes=model.quota,
        key_exported=model.key_exported or not _knows_passwords(model.engine),
        target_keeps_password=pulled.is_sealed(table),
    )


def find_program(traits: Traits, written: str, place: Place, collector: Collector) -> str:
    """An engine's absolute path; "" after a mistake."""
    program, table = traits.program, place.key.rpartition(".")[0]
    if written:
        if not written.startswith("/"):
            collector.mistake(
                place, f"{written!r} is not an absolute path", f"write /usr/bin/{program}"
            )
        elif problem := not_a_program(written):
            collector.mistake(place, problem, "name the engine's program")
        elif traits.script:
            check_environment(written, place, collector)
        return written
    for folder in PROGRAM_FOLDERS:
        if not not_a_program(f"{folder}/{program}"):
            return f"{folder}/{program}"
    collector.mistake(
        place,
        f"there is no {program} in {' or '.join(PROGRAM_FOLDERS)}",
        f"apt-get install {traits.package}, or write where it is: [{table}] program = …",
    )
    return ""


def _knows_passwords(engine: str) -> bool:
    """Whether there is a key that somebody would have to keep elsewhere."""
    return engine not in ENGINES or ENGINES[engine].traits.password
