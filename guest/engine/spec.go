//go:build linux

package engine

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"dhow/guest/runtime/spec"
	"dhow/internal/errdefs"
)

// specFor makes the OCI spec of a container. It depends on nothing that
// changes while the container exists, so that a create finds what a start
// would refuse.
func (e *Engine) specFor(b *box, r *Record) (*specs.Spec, error) {
	return spec.Build(spec.Input{
		ID: r.ID, Config: r.Config, HostConfig: r.HostConfig, CPUs: e.o.CPUs,
		Mounts: []spec.Mount{
			{Source: b.resolvPath(), Destination: "/etc/resolv.conf"},
			{Source: b.hostnamePath(), Destination: "/etc/hostname"},
			{Source: b.hostsPath(), Destination: "/etc/hosts"},
		},
		HostDevices: hostDevices, DeviceAt: devicesAt,
	})
}

// buildSpec takes the spec that create made, or makes it again.
func (l *launch) buildSpec(context.Context) (err error) {
	l.b.mu.Lock()
	s := l.b.spec
	l.b.spec = nil
	l.b.mu.Unlock()
	if s == nil {
		if s, err = l.e.specFor(l.b, &l.rec); err != nil {
			return err
		}
	}
	l.create.Spec = s
	return nil
}

// hostDevices returns the machine's devices, for privileged containers: what
// the container makes for itself apart.
func hostDevices() ([]specs.LinuxDevice, error) {
	var list []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreMissing(err) // it went away meanwhile
		}
		if d.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		}
		if path == "/dev/console" {
			return nil
		}
		dev, ok, err := deviceAt(path)
		if ok && err == nil {
			list = append(list, dev)
		}
		return ignoreMissing(err)
	})
	return list, err
}

// devicesAt returns the device at path, or those below it.
func devicesAt(path string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "error gathering device information while adding custom device %q: no such file or directory", path)
	}
	var list []specs.LinuxDevice
	err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dev, ok, err := deviceAt(p)
		if ok && err == nil {
			list = append(list, dev)
		}
		return err
	})
	if err == nil && len(list) == 0 {
		err = errdefs.New(errdefs.Invalid, "error gathering device information while adding custom device %q: not a device node", path)
	}
	return list, err
}

func deviceAt(path string) (specs.LinuxDevice, bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false, nil
	}
	mode := os.FileMode(st.Mode & 0o7777)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), FileMode: &mode, UID: &uid, GID: &gid,
	}, true, nil
}
