//go:build linux

package spec

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultShmSize is the size of /dev/shm, in bytes.
const DefaultShmSize = 64 << 20

// mounts merges the request's mounts into the default ones: a user's mount
// takes the place of the default at the same path, a mount on /dev takes all
// below it away.
func mounts(s *specs.Spec, in *Input) error {
	h := in.HostConfig
	list, err := userMounts(s, in)
	if err != nil {
		return err
	}
	given := map[string]bool{}
	for _, m := range list {
		given[m.Destination] = true
	}
	if shm := in.ShmPath; shm != "" && !given["/dev/shm"] && !given["/dev"] && !h.IpcMode.IsNone() && !h.IpcMode.IsPrivate() {
		list = append(list, specs.Mount{Destination: "/dev/shm", Source: shm, Type: "bind", Options: []string{"rbind", "rprivate"}})
		given["/dev/shm"] = true
	}
	// By depth, so that a mount does not hide one below it.
	slices.SortStableFunc(list, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	var out []specs.Mount
	for _, m := range s.Mounts {
		if given[m.Destination] || given["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		switch m.Destination {
		case "/dev/shm":
			if h.IpcMode.IsNone() {
				continue
			}
			size := h.ShmSize
			if size == 0 {
				size = DefaultShmSize
			}
			m.Options[len(m.Options)-1] = "size=" + strconv.FormatInt(size, 10)
		case "/sys", "/sys/fs/cgroup":
			if h.Privileged {
				m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
			}
		}
		if h.ReadonlyRootfs && !slices.Contains([]string{"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"}, m.Destination) && !slices.Contains(m.Options, "ro") && !h.Privileged {
			m.Options = append(m.Options, "ro")
		}
		out = append(out, m)
	}
	s.Mounts = append(out, list...)
	return nil
}

// userMounts are the binds, the tmpfs mounts of --tmpfs and those of --mount.
func userMounts(s *specs.Spec, in *Input) (list []specs.Mount, err error) {
	for _, m := range in.Mounts {
		om, err := bind(s, m)
		if err != nil {
			return nil, err
		}
		list = append(list, om)
	}
	for dest, data := range in.HostConfig.Tmpfs {
		m, err := tmpfs(dest, strings.Split(data, ","))
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	for _, m := range in.HostConfig.Mounts {
		if m.Type != mount.TypeTmpfs {
			continue
		}
		var opts []string
		if o := m.TmpfsOptions; o != nil {
			if o.SizeBytes > 0 {
				opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
			}
			if o.Mode != 0 {
				opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
			}
			for _, kv := range o.Options {
				opts = append(opts, strings.Join(kv, "="))
			}
		}
		if m.ReadOnly {
			opts = append(opts, "ro")
		}
		om, err := tmpfs(m.Target, opts)
		if err != nil {
			return nil, err
		}
		list = append(list, om)
	}
	// A map has no order: the result shall.
	slices.SortStableFunc(list, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	for i := 1; i < len(list); i++ {
		if list[i].Destination == list[i-1].Destination {
			return nil, errdefs.New(errdefs.Invalid, "Duplicate mount point: %s", list[i].Destination)
		}
	}
	return list, nil
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

func bind(s *specs.Spec, m Mount) (specs.Mount, error) {
	if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
		return specs.Mount{}, errdefs.New(errdefs.Invalid, "invalid mount path: '%s' mount path must be absolute", m.Destination)
	}
	opts := []string{"rbind"}
	if m.NonRecursive {
		opts[0] = "bind"
	}
	switch {
	case m.ReadOnly && (m.NonRecursive || m.ReadOnlyNonRecursive):
		opts = append(opts, "ro")
	case m.ReadOnly:
		opts = append(opts, "rro")
	}
	p := m.Propagation
	if p == "" {
		p = "rprivate"
	}
	if !slices.Contains(propagations, p) {
		return specs.Mount{}, errdefs.New(errdefs.Invalid, "invalid propagation mode: %s", p)
	}
	// The root has to let events through to the mounts in it.
	switch root := s.Linux.RootfsPropagation; {
	case strings.HasSuffix(p, "shared"):
		s.Linux.RootfsPropagation = "shared"
	case strings.HasSuffix(p, "slave") && root == "":
		s.Linux.RootfsPropagation = "rslave"
	}
	return specs.Mount{Destination: path.Clean(m.Destination), Source: m.Source, Type: "bind", Options: append(opts, p)}, nil
}

// tmpfs makes a tmpfs mount, with docker's defaults that the options override.
func tmpfs(dest string, options []string) (specs.Mount, error) {
	if !path.IsAbs(dest) || path.Clean(dest) == "/" {
		return specs.Mount{}, errdefs.New(errdefs.Invalid, "invalid mount path: '%s' mount path must be absolute", dest)
	}
	var opts []string
	seen := map[string]bool{}
	all := append([]string{"noexec", "nosuid", "nodev", "rprivate"}, options...)
	for i := len(all) - 1; i >= 0; i-- { // the last word on a matter counts
		o := all[i]
		if o == "" {
			continue
		}
		name, _, valued := strings.Cut(o, "=")
		matter := name
		if !valued {
			matter = strings.TrimPrefix(name, "no")
			if m, ok := opposite[name]; ok {
				matter = m
			} else if !slices.Contains(tmpfsFlags, matter) {
				return specs.Mount{}, errdefs.New(errdefs.Invalid, "Invalid tmpfs option [%q]", o)
			}
		} else if !slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"}, name) {
			return specs.Mount{}, errdefs.New(errdefs.Invalid, "Invalid tmpfs option [%q]", o)
		}
		if !seen[matter] {
			seen[matter] = true
			opts = append(opts, o)
		}
	}
	slices.Reverse(opts)
	return specs.Mount{Destination: path.Clean(dest), Source: "tmpfs", Type: "tmpfs", Options: opts}, nil
}

// Flags of tmpfs mounts by the matter that they are about.
var (
	tmpfsFlags = []string{"suid", "dev", "exec", "atime", "diratime", "mand", "relatime", "strictatime"}
	opposite   = map[string]string{
		"ro": "rw", "rw": "rw", "defaults": "defaults", "async": "sync", "sync": "sync", "dirsync": "dirsync",
		"private": "propagation", "rprivate": "propagation", "shared": "propagation", "rshared": "propagation",
		"slave": "propagation", "rslave": "propagation", "unbindable": "propagation", "runbindable": "propagation",
		"remount": "remount",
	}
)
