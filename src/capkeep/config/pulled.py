"""What jobs and repositories cannot ask for where files of one host are kept by another one.

A server comes for the files of its targets. On the target there is a job over a repository that is
`pulled-by` that server's key: it says what may be read, and everything else is the server's.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from capkeep.config import ssh, syntax
from capkeep.config.expand import TARGET, Pulls, secrets_with_target
from capkeep.config.jobs import JobTable
from capkeep.config.mistakes import Collector, dotted
from capkeep.config.model import RepositoryConfig, TargetConfig
from capkeep.config.secrets import check_secret
from capkeep.config.sources import Owner
from capkeep.config.syntax import kebab
from capkeep.config.targets import pulled_targets
from capkeep.config.validate import Checked
from capkeep.config.venv import environment_of
from capkeep.engines.base import Traits
from capkeep.values import Location, ValueMistake

SCHEME: Final = "pulled"  # of such a repository's location here
# Of a job whose files a server comes for: what is decided there.
SERVERS: Final = (
    "schedule", "spread", "on_battery", "on_metered", "max_age", "check", "retention", "drill",
    "copies", "notify", "dumps", "before", "after", "on_success", "on_failure",
)  # fmt: skip
LEFT: Final = frozenset(("engine", "password", "pulled_by"))  # of a repository's keys
# What [defaults] say that means nothing for a job with targets.
OWN: Final = ("host",)
KEEPING: Final = "target"  # who has the password, in place of this host
# What needs somebody here who can open the repository.
OPENED: Final = ("check", "retention", "drill", "copies")

Table = Checked[syntax.Repository]
Tables = Mapping[str, Table]


def is_template(table: Table) -> bool:
    """Whether the table stands for a repository of each target."""
    return TARGET in table.model.location


def is_sealed(table: Table) -> bool:
    """Whether the target alone has the repository's password."""
    return table.model.password_kept_by == KEEPING


def sealed(table: JobTable, repositories: Tables) -> tuple[str, ...]:
    """The repositories that a job sends files to and that nobody here can open."""
    names = table.model.repositories
    return tuple(n for n in names if n in repositories and is_sealed(repositories[n]))


def is_answered(table: JobTable, repositories: Tables) -> bool:
    """Whether a server comes for the job's files."""
    names = table.model.repositories
    return any(name in repositories and repositories[name].gives("pulled_by") for name in names)


def check_repository(
    name: str, table: Table, program: str, traits: Traits, owner: Owner, collector: Collector
) -> RepositoryConfig:
    """A repository that its server has, as a value: the server's key stands for the place."""
    model = table.model
    unset = syntax.Repository()
    for field in sorted(model.model_fields_set - LEFT):
        if getattr(model, field) != getattr(unset, field):
            said = (
                "the server that comes for the files has the repository, and what is needed there"
            )
            collector.mistake(table.at(kebab(field)), said, "take it away, or pulled-by")
    if owner.user_mode:
        said = "there is no login for a server without root: this is for the system's capkeep"
        collector.mistake(table.at("pulled-by"), said, "take it away, and write location = …")
    key = ""
    try:
        key = ssh.parse_key(model.pulled_by)
    except ValueMistake as mistake:
        collector.mistake(table.at("pulled-by"), mistake.problem, mistake.hint)
    if table.gives("password"):
        if not traits.password:
            said = f"{model.engine} knows no password"
            collector.mistake(table.at("password"), said, "take it away")
        check_secret(model.password, table.at("password"), owner, collector)
    return RepositoryConfig(
        name=name,
        engine=model.engine,
        program=program,
        environment_folder=environment_of(program) if program else "",
        location=Location(SCHEME, f"pulled-by:{name}", host=name),
        password=model.password,
        pulled_by=key,
    )


def check_sealed(table: Table, traits: Traits, collector: Collector) -> None:
    """Of a repository whose password its target keeps: whatever would need a password here."""
    place = table.at("password-kept-by")
    if not traits.password:
        collector.mistake(place, f"{table.model.engine} knows no password", "take it away")
    for field, what in (
        ("password", "the target keeps the password, and nobody here has one"),
        ("keeper_credentials", "the target keeps the password, so there is no keeper here"),
        ("key_exported", "the target keeps the password, so there is no key here to export"),
    ):
        if table.gives(field):
            hint = f"take it away, or password-kept-by from [{dotted(table.path)}]"
            collector.mistake(table.at(kebab(field)), what, hint)


class PullChecker:
    """Looks at one job after another, with its table and the targets that it names."""

    def __init__(self, repositories: Tables, collector: Collector) -> None:
        self._repositories = repositories
        self._collector = collector
        self._jobs: dict[str, str] = {}  # the first job of each target
        self._answered: dict[str, str] = {}  # the first job of each repository with a server

    def check(self, table: JobTable, targets: Collection[TargetConfig]) -> None:
        """Tell the collector of every mistake."""
        if table.own("targets"):
            self._pulled(table, targets)
            return
        for name, field, path in self._named(table):
            place = table.at(field, *path)
            if self._repositories[name].gives("pulled_by") and field == "copies":
                self._collector.mistake(place, _elsewhere(name), "copy into one that is here")
            elif is_template(self._repositories[name]):
                self._collector.mistake(
                    place,
                    f"repository {name} is one for each target, and the job has no targets",
                    f'write targets = ["@all"] if it keeps their files, or name a repository without'
                    f" {TARGET} in its location",
                )
        if is_answered(table, self._repositories):
            self._answers(table)

    def _named(self, table: JobTable) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
        """The repositories of a job that there are, and where each is named."""
        model = table.model
        for i, name in enumerate(model.repositories):
            if name in self._repositories:
                yield name, "repositories", (i,)
        for i, name in enumerate(model.copies.into if model.copies else ()):
            if name in self._repositories:
                yield name, "copies", ("into", i)

    def _pulled(self, table: JobTable, targets: Collection[TargetConfig]) -> None:
        """A job on the server."""
        mistake = self._collector.mistake
        self._places(table)
        self._sealed(table)
        if table.own("dumps"):
            said = "dumps are made on the host that the databases are on, and that is not this one"
            hint = "take it away; have the target write them into a directory that include names"
            mistake(table.at("dumps"), said, hint)
        if table.own("host"):
            said = "each target has a host name of its own in its snapshots"
            mistake(table.at("host"), said, "write host-name = … in [targets.NAME]")
        for i, tag in enumerate(table.model.tags):
            try:
                ssh.check_tag(tag)
            except ValueMistake as found:
                mistake(table.at("tags", i), found.problem, found.hint)
        if len(table.model.tags) > ssh.MOST_TAGS:
            said = f"a target takes {ssh.MOST_TAGS} tags at most"
            mistake(table.at("tags"), said, "take some away")
        if any(target.way == "sftp" for target in targets):
            self._through_sftp(table)
        for target in targets:
            first = self._jobs.setdefault(target.name, table.name)
            if first != table.name:
                mistake(
                    table.at("targets"),
                    f"target {target.name} already sends what job {first} keeps, and one login there"
                    " answers for one job",
                    f"name its paths in job {first}, or define another target with the same host"
                    " and an identity of its own",
                )

    def _through_sftp(self, table: JobTable) -> None:
        """A job of which some target's files are read here."""
        for name, field, path in self._named(table):
            if field == "repositories" and self._repositories[name].model.engine == "rdiff-backup":
                self._collector.mistake(
                    table.at(field, *path),
                    f'{name} is a mirror, and by way = "sftp" inode numbers change with every look',
                    "name repositories of restic or borg, or make another job for these targets",
                )
        for name, field, path in self._named(table):
            if field == "repositories" and is_sealed(self._repositories[name]):
                self._collector.mistake(
                    table.at(field, *path),
                    f'the target keeps the password of {name}, and by way = "sftp" the engine runs here',
                    "name a repository that has a password here, or make another job for these targets",
                )
        if table.model.one_file_system:
            self._collector.mistake(
                table.at("one-file-system"),
                'by way = "sftp" all of a target looks like one filesystem',
                "take it away, and exclude what is not to be kept",
            )

    def _sealed(self, table: JobTable) -> None:
        """What nobody can do where nobody can open the repository."""
        found = sealed(table, self._repositories)
        for name, field, path in self._named(table):
            place = table.at(field, *path)
            if field == "copies" and is_sealed(self._repositories[name]):
                said = f"the target keeps the password of {name}, and a copy is made with one that is here"
                self._collector.mistake(place, said, "copy into one with a password")
            elif field == "repositories" and found and name not in found:
                self._collector.mistake(
                    place,
                    f"the target seals all that it sends with the password that it keeps for {found[0]},"
                    f" and {name} has another one here",
                    f'take it away, or write password-kept-by = "target" in [repositories.{name}] too',
                )
        for what in OPENED if found else ():
            if table.own(what):
                said = f"nobody here can open {found[0]}: the target keeps its password"
                hint = f"take it away, or password-kept-by from [repositories.{found[0]}]"
                self._collector.mistake(table.at(what), said, hint)

    def _places(self, table: JobTable) -> None:
        """Where such a job keeps what it gets."""
        engines: dict[str, str] = {}
        for name, field, path in self._named(table):
            repository, place = self._repositories[name], table.at(field, *path)
            if repository.gives("pulled_by"):
                hint = f"name one with {TARGET} in its location"
                self._collector.mistake(place, _elsewhere(name), hint)
            elif field == "copies":
                continue
            elif not is_template(repository):
                self._collector.mistake(
                    place,
                    f"repository {name} is one place for all: each target could read there what the"
                    " others have",
                    f'write location = "{repository.model.location.rstrip("/")}/{TARGET}" in'
                    f" [repositories.{name}], or name such a one in [jobs.{table.name}]",
                )
            elif repository.model.engine_network:
                self._collector.mistake(
                    place,
                    f"repository {name} has engine-network = true, and the engine runs on the target:"
                    " it would have the credentials",
                    f"take engine-network away from [repositories.{name}], so that it has a vault here",
                )
            engines.setdefault(repository.model.engine, name)
        if len(engines) > 1:
            both = ", ".join(f"{name}: {engine}" for engine, name in engines.items())
            said = f"a target has one engine for what it sends ({both})"
            hint = "name repositories of one engine"
            self._collector.mistake(table.at("repositories"), said, hint)

    def _answers(self, table: JobTable) -> None:
        """A job on the target."""
        names = table.model.repositories
        for i, name in enumerate(names):
            if name not in self._repositories or not self._repositories[name].gives("pulled_by"):
                continue
            place = table.at("repositories", i)
            if len(set(names)) > 1:
                said = f"a server comes for what goes into {name}, so it is the only one of its job"
                self._collector.mistake(place, said, "make a job of its own for it")
            first = self._answered.setdefault(name, table.name)
            if first != table.name:
                said = f"repository {name} already has what job {first} sends"
                hint = "put the paths into one job, or define another repository with another key"
                self._collector.mistake(place, said, hint)
        for field in SERVERS:
            if table.own(field):
                said = "the server that comes for the files decides that"
                hint = f"take it away, and write it in the server's job: {kebab(field)} = …"
                if field == "dumps":
                    hint = "take it away; have them written into a directory that include names"
                self._collector.mistake(table.at(field), said, hint)


def _elsewhere(name: str) -> str:
    return f"repository {name} is on another host, which comes for this one's files"


class Survey:
    """Looks at all jobs, repositories and targets together: who comes for whose files."""

    def __init__(self, repositories: Tables, targets: tuple[TargetConfig, ...]) -> None:
        self._repositories = repositories
        self._targets = targets
        self._jobs: dict[str, JobTable] = {}

    def table(
        self,
        name: str,
        own: Checked[syntax.Job],
        defaults: Mapping[str, Checked[syntax.JobDefaults]],
    ) -> JobTable:
        """A job over the defaults, without those that mean nothing for files that another host keeps."""
        table = JobTable(name, own, defaults)
        gone: tuple[str, ...] = OWN if table.own("targets") else ()
        gone += OPENED if sealed(table, self._repositories) else ()
        if is_answered(table, self._repositories):
            gone = SERVERS
        left = {field: found for field, found in defaults.items() if field not in gone}
        self._jobs[name] = JobTable(name, own, left)
        return self._jobs[name]

    def pulls(self, collector: Collector, *, all_read: bool) -> Pulls:
        """Which repository each target needs; a mistake for all that cannot be."""
        _check_templates(self._repositories, collector)
        _check_sealed_places(self._repositories, collector)
        _check_keys(self._repositories, collector)
        checker = PullChecker(self._repositories, collector)
        templates = frozenset(n for n, table in self._repositories.items() if is_template(table))
        targets = {}
        uses: dict[str, tuple[str, ...]] = {}
        for job, table in self._jobs.items():
            found = pulled_targets(table, self._targets, collector, all_read=all_read)
            checker.check(table, found)
            if found:
                targets[job] = found
            copies = table.model.copies
            for name in (*table.model.repositories, *(copies.into if copies else ())):
                if name in templates:
                    own = (target.name for target in found)
                    uses[name] = tuple(dict.fromkeys((*uses.get(name, ()), *own)))
        return Pulls(targets, templates, uses)


def _check_templates(tables: Tables, collector: Collector) -> None:
    """{target} in a secret's source alone would be one place with many passwords."""
    for table in tables.values():
        for key in () if is_template(table) else secrets_with_target(table.model):
            said = f"{TARGET} stands for a target, but the location is one place for all"
            hint = f'write {TARGET} into location too: "/srv/backup/{TARGET}"'
            collector.mistake(table.at(*key), said, hint)


def _check_sealed_places(tables: Tables, collector: Collector) -> None:
    """Whoever keeps a password for himself is one target, and its repository is its own."""
    for table in tables.values():
        if is_sealed(table) and not is_template(table) and table.gives("location"):
            said = f"only a target keeps a password, and the location is no target's: it has no {TARGET}"
            hint = f'write "{table.model.location.rstrip("/")}/{TARGET}", or take it away'
            collector.mistake(table.at("password-kept-by"), said, hint)


def _check_keys(tables: Tables, collector: Collector) -> None:
    """A key opens one repository: sshd goes by the first line that has it."""
    first: dict[str, str] = {}
    for name, table in tables.items():
        if not table.gives("pulled_by"):
            continue
        try:
            key = ssh.plain_key(ssh.parse_key(table.model.pulled_by))
        except ValueMistake:
            continue  # told where the repository is looked at
        if (other := first.setdefault(key, name)) != name:
            said = f"repository {other} has the same key, and a login by it asks for that one alone"
            hint = "have the server make another key: ssh-keygen -t ed25519"
            collector.mistake(table.at("pulled-by"), said, hint)
