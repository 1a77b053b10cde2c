"""System call numbers: name → (x86_64, aarch64); -1 where an architecture has no such call.

The tests compare every number with libseccomp's.
"""

from typing import Final

Numbers = dict[str, tuple[int, int]]

# The first number that is unknown here: whatever newer kernels add is answered with ENOSYS.
HORIZON: Final = 463

# Looking into other processes, kernel-wide state, new namespaces, code near the kernel: no room
# and no engine ever needs one of these.
NEVER: Final[Numbers] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "pidfd_getfd": (438, 438),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "io_submit": (209, 2), "io_cancel": (210, 3), "io_destroy": (207, 1),
    "io_getevents": (208, 4), "io_pgetevents": (333, 292), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, -1), "query_module": (178, -1), "get_kernel_syms": (177, -1),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "acct": (163, 89), "syslog": (103, 116), "vhangup": (153, 58),
    "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "uselib": (134, -1),
    "_sysctl": (156, -1), "sysfs": (139, -1), "ustat": (136, -1), "iopl": (172, -1),
    "ioperm": (173, -1), "modify_ldt": (154, -1), "personality": (135, 92),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "remap_file_pages": (216, 234),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
}  # fmt: skip

# Further, for an engine: it starts its relay, makes no socket, says nothing on the one that it was
# given but what sendmsg(2) can say, and changes nothing of its own identity.
ENGINE: Final[Numbers] = {
    "fork": (57, -1), "vfork": (58, -1), "execveat": (322, 281), "memfd_create": (319, 279),
    "socket": (41, 198), "connect": (42, 203), "sendto": (44, 206), "recvfrom": (45, 207),
    "recvmsg": (47, 212), "recvmmsg": (299, 243), "sendmmsg": (307, 269), "shutdown": (48, 210),
    "setsockopt": (54, 208), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "socketpair": (53, 199), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "setgroups": (116, 159), "capset": (126, 91), "sync": (162, 81),
    "syncfs": (306, 267),
}  # fmt: skip

# What only restoring needs: owners, extended attributes, links and devices.
CHANGING: Final[Numbers] = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "link": (86, -1), "linkat": (265, 37),
    "symlink": (88, -1), "symlinkat": (266, 36), "mknod": (133, -1), "mknodat": (259, 33),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
}  # fmt: skip

# Modes and times: of a file's owner they ask for nothing else, whatever Landlock says of the file.
TOUCHING: Final[Numbers] = {
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
}  # fmt: skip

# What Landlock knows as a right of its own from its third ABI on (Linux 6.2).
EMPTYING: Final[Numbers] = {"truncate": (76, 45)}

# Another program, or another process or thread.
STARTING: Final[Numbers] = {"execve": (59, 221), "clone": (56, 220)}

# Allowed or not by their arguments.
RULED: Final[Numbers] = {
    "socket": (41, 198), "socketpair": (53, 199), "ioctl": (16, 29), "fcntl": (72, 25), "clone": (56, 220),
    "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "chmod": (90, -1),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "creat": (85, -1),
    "mknod": (133, -1), "mknodat": (259, 33), "open": (2, -1), "openat": (257, 56), "openat2": (437, 437),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
}  # fmt: skip
