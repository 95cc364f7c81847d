"""Whether SQLite's file is on a network disk, where it does not keep several hosts apart.

SQLite's write-ahead log is shared memory of one machine. Two hosts that open such a file can damage
it, even by reading, and locks of some network disks keep nobody out.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from storage.database import parse

_NETWORK = (
    "9p", "afp", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.gcsfuse",
    "fuse.gluster", "fuse.goofys", "fuse.juicefs", "fuse.mountpoint-s3", "fuse.rclone", "fuse.s3fs",
    "fuse.sshfs", "gfs", "glusterfs", "gpfs", "lustre", "ncp", "nfs", "ocfs2", "orangefs", "smb",
    "webdav", "weka",
)  # fmt: skip


def network_disk(url: str) -> str | None:
    """Return what network disk the SQLite file of `url` is on, or would be; None if on none."""
    parsed = parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    file = Path(parsed.database).resolve()
    mounts = [(Path(mount.mountpoint), mount.fstype) for mount in psutil.disk_partitions(all=True)]
    around = [mount for mount in mounts if file.is_relative_to(mount[0])]
    # Of several mounts at one place the last hides the others.
    folder, kind = max(reversed(around), key=lambda mount: len(mount[0].parts), default=(file, ""))
    return f"{kind} at {folder}" if kind.lower().startswith(_NETWORK) else None
