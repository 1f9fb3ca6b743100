//go:build linux

package layer

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// set sets the metadata of an open file. The order matters: chown clears
// capabilities and set-ID bits, and the times come last.
func (m *metadata) set(fd int) error {
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return os.NewSyscallError("chown", err)
		}
	}
	for _, x := range m.xattrs {
		if err := ignoreRefused(unix.Fsetxattr(fd, x.name, []byte(x.value), 0)); err != nil {
			return fmt.Errorf("set attribute %s: %w", printable(x.name), err)
		}
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	return m.times(fd, "", unix.AT_EMPTY_PATH)
}

// setAt sets the metadata of a name that is no regular file and no directory,
// which cannot always be opened. A link has no mode.
func (m *metadata) setAt(at int, base string, link bool) error {
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchownat(at, base, int(m.uid), int(m.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("chown", err)
		}
	}
	if len(m.xattrs) > 0 {
		// There is no setxattrat before Linux 6.13; the directory's entry in
		// /proc is the same descriptor, and l* does not follow the last name.
		p := "/proc/self/fd/" + strconv.Itoa(at) + "/" + base
		for _, x := range m.xattrs {
			if err := ignoreRefused(unix.Lsetxattr(p, x.name, []byte(x.value), 0)); err != nil {
				return fmt.Errorf("set attribute %s: %w", printable(x.name), err)
			}
		}
	}
	if !link {
		if err := unix.Fchmodat(at, base, m.mode, 0); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	return m.times(at, base, unix.AT_SYMLINK_NOFOLLOW)
}

func (m *metadata) times(at int, base string, flags int) error {
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(at, base, []unix.Timespec{m.atime, m.mtime}, flags))
}

// ignoreRefused drops the errors by which a file system or the kernel says that
// it does not have such attributes on such a file; docker does so as well.
func ignoreRefused(err error) error {
	switch err {
	case unix.ENOTSUP, unix.EPERM:
		return nil
	}
	return err
}

// metadataOfStat returns what stat knows of a file.
func metadataOfStat(st *unix.Stat_t) metadata {
	return metadata{uid: st.Uid, gid: st.Gid, mode: st.Mode & 0o7777, atime: st.Atim, mtime: st.Mtim}
}

// metadataOfFD returns the metadata of an open file, without overlayfs' own
// attributes.
func metadataOfFD(fd int) (metadata, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return metadata{}, os.NewSyscallError("stat", err)
	}
	m := metadataOfStat(&st)
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(fd, names)
	if err == unix.ENOTSUP {
		return m, nil
	}
	if err != nil {
		return m, os.NewSyscallError("listxattr", err)
	}
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		if len(name) == 0 || strings.HasPrefix(string(name), "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, string(name), value)
		if err != nil {
			return m, os.NewSyscallError("getxattr", err)
		}
		m.xattrs = append(m.xattrs, xattr{string(name), string(value[:n])})
	}
	return m, nil
}
