//go:build linux

package runtime

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// HostDevices lists the device nodes of the machine below /dev, without those
// that a container has of its own (terminals, shared memory).
func HostDevices() ([]specs.LinuxDevice, error) { return devicesBelow("/dev", true) }

// DeviceAt returns the node at path, or those below it if it is a directory.
func DeviceAt(path string) ([]specs.LinuxDevice, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return devicesBelow(path, false)
	}
	d, ok, err := deviceNode(path, false)
	if err != nil || !ok {
		return nil, err
	}
	return []specs.LinuxDevice{d}, nil
}

func devicesBelow(dir string, host bool) (l []specs.LinuxDevice, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // gone while we walk
			}
			return err
		}
		if e.IsDir() {
			if host {
				switch strings.TrimPrefix(path, dir) {
				case "/pts", "/shm", "/fd", "/mqueue", "/.lxc", "/.lxd-mounts", "/.udev":
					return fs.SkipDir
				}
			}
			return nil
		}
		if host && (path == "/dev/console" || path == "/dev/ptmx") {
			return nil
		}
		d, ok, err := deviceNode(path, true)
		if ok {
			l = append(l, d)
		}
		return err
	})
	return l, err
}

// deviceNode describes the node at path. ok is false for what is no device.
func deviceNode(path string, nofollow bool) (d specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if nofollow {
		err = unix.Lstat(path, &st)
	} else {
		err = unix.Stat(path, &st)
	}
	if err == unix.ENOENT && nofollow {
		return d, false, nil
	}
	if err != nil {
		return d, false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	mode := os.FileMode(st.Mode & 0o777)
	rdev := uint64(st.Rdev)
	d.Path, d.FileMode, d.UID, d.GID = path, &mode, &st.Uid, &st.Gid
	d.Major, d.Minor = int64(unix.Major(rdev)), int64(unix.Minor(rdev))
	return d, true, nil
}
