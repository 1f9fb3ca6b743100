//go:build linux

package runtime

import (
	"os"
	"path/filepath"
	"strings"

	"dhow/guest/runtime/enter"
	"dhow/guest/runtime/seccomp"
	"dhow/guest/runtime/spec"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// plan is a spec made ready for the clone.
type plan struct {
	enter.Config
	cloneFlags uint64
	pidNS      string     // path of the PID namespace to clone into; "" = by cloneFlags
	joins      []nsByPath // further namespaces by path
	filter     *seccomp.Program
	oomScore   *int
}

type nsByPath struct {
	path string
	flag uint64
}

var nsFlags = map[specs.LinuxNamespaceType]uint64{
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// planContainer translates the spec of a container.
func (r *Runtime) planContainer(cc *CreateConfig) (*plan, error) {
	s := cc.Spec
	switch {
	case s == nil || s.Process == nil || s.Linux == nil:
		return nil, errdefs.New(errdefs.Invalid, "the container's spec lacks process or linux")
	case s.Root == nil && len(cc.Rootfs) == 0:
		return nil, errdefs.New(errdefs.Invalid, "the container's spec lacks root")
	//lint:ignore SA1019 Prestart is deprecated but must be refused too
	case s.Hooks != nil && (len(s.Hooks.Prestart)+len(s.Hooks.CreateRuntime)+len(s.Hooks.CreateContainer)+len(s.Hooks.StartContainer)+len(s.Hooks.Poststart)+len(s.Hooks.Poststop)) > 0:
		return nil, errdefs.New(errdefs.Unimplemented, "hooks are not supported")
	case len(s.Linux.UIDMappings)+len(s.Linux.GIDMappings) > 0:
		return nil, errdefs.New(errdefs.Unimplemented, "user namespaces are not supported")
	}
	p := &plan{}
	p.ID = cc.ID
	if err := p.namespaces(s); err != nil {
		return nil, err
	}
	if err := p.rootfs(cc, r.rootPoint); err != nil {
		return nil, err
	}
	if err := p.mounts(s); err != nil {
		return nil, err
	}
	if err := p.devices(s); err != nil {
		return nil, err
	}
	p.Masked, p.ReadonlyPaths = s.Linux.MaskedPaths, s.Linux.ReadonlyPaths
	p.Hostname, p.Domainname = s.Hostname, s.Domainname
	if s.Hostname != "" {
		p.Flags |= enter.SetHostname
	}
	if s.Domainname != "" {
		p.Flags |= enter.SetDomain
	}
	if p.Flags&(enter.SetHostname|enter.SetDomain) != 0 && !p.owns(unix.CLONE_NEWUTS) {
		return nil, errdefs.New(errdefs.Invalid, "unable to set hostname without a private UTS namespace")
	}
	for k, v := range s.Linux.Sysctl {
		if err := p.sysctl(k, v); err != nil {
			return nil, err
		}
	}
	p.oomScore = s.Process.OOMScoreAdj
	if s.Annotations[spec.AnnotationInit] == "true" && p.owns(unix.CLONE_NEWPID) && p.pidNS == "" {
		p.Flags |= enter.Init
	}
	p.Keyring = "_ses." + cc.ID
	if cc.IO.Terminal || s.Process.Terminal {
		p.Flags |= enter.Console
	}
	if s.Linux.Seccomp != nil {
		var err error
		if p.filter, err = seccomp.Compile(s.Linux.Seccomp); err != nil {
			return nil, err
		}
	}
	return p, r.planProcess(&p.Config, s.Process, cc.IO.Terminal, groups(s), p.filter)
}

// groups are the further groups that the annotation names.
func groups(s *specs.Spec) []string {
	if g := s.Annotations[spec.AnnotationGroups]; g != "" {
		return strings.Split(g, ",")
	}
	return nil
}

// owns reports whether the container gets the namespace for itself or by path,
// rather than sharing the agent's.
func (p *plan) owns(flag uint64) bool {
	if (p.Unshare|p.cloneFlags)&flag != 0 {
		return true
	}
	for _, j := range p.joins {
		if j.flag == flag {
			return true
		}
	}
	return flag == unix.CLONE_NEWPID && p.pidNS != ""
}

func (p *plan) namespaces(s *specs.Spec) error {
	for _, ns := range s.Linux.Namespaces {
		flag, ok := nsFlags[ns.Type]
		switch {
		case !ok:
			return errdefs.New(errdefs.Invalid, "unknown namespace %q", ns.Type)
		case flag == unix.CLONE_NEWUSER, flag == unix.CLONE_NEWTIME, flag == unix.CLONE_NEWNS && ns.Path != "":
			return errdefs.New(errdefs.Unimplemented, "this form of the %s namespace is not supported", ns.Type)
		case p.owns(flag):
			return errdefs.New(errdefs.Invalid, "namespace %q is listed twice", ns.Type)
		case flag == unix.CLONE_NEWPID && ns.Path == "":
			p.cloneFlags |= flag
		case flag == unix.CLONE_NEWPID:
			p.pidNS = ns.Path
		case ns.Path != "":
			p.joins = append(p.joins, nsByPath{ns.Path, flag})
		default:
			p.Unshare |= flag
		}
	}
	if p.Unshare&unix.CLONE_NEWNS == 0 {
		return errdefs.New(errdefs.Invalid, "a container needs a mount namespace of its own")
	}
	return nil
}

func (p *plan) rootfs(cc *CreateConfig, point string) error {
	s := cc.Spec
	p.RootPath = point
	if len(cc.Rootfs) == 0 {
		path, err := filepath.Abs(s.Root.Path)
		if err != nil {
			return err
		}
		p.RootPath = path
	}
	for _, m := range cc.Rootfs {
		em, err := planMount(m.Type, m.Source, m.Target, m.Options, m.Dir)
		if err != nil {
			return err
		}
		p.RootMounts = append(p.RootMounts, em)
	}
	if s.Root != nil && s.Root.Readonly {
		p.Flags |= enter.ReadonlyRoot
	}
	// Mounts made later outside show up inside only where a mount asks for it.
	p.InitPropagation = unix.MS_PRIVATE | unix.MS_REC
	if rp := s.Linux.RootfsPropagation; rp != "" {
		flag, ok := propagations[rp]
		if !ok {
			return errdefs.New(errdefs.Invalid, "unknown root propagation %q", rp)
		}
		p.RootPropagation = flag
	}
	all := p.RootPropagation
	for _, m := range s.Mounts {
		for _, o := range m.Options {
			all |= propagations[o]
		}
	}
	switch {
	case all&unix.MS_SHARED != 0:
		// The agent's own mounts would have to be shared, and each root be
		// mounted on a private one.
		return errdefs.New(errdefs.Unimplemented, "shared mount propagation is not supported")
	case all&unix.MS_SLAVE != 0:
		p.InitPropagation = unix.MS_SLAVE | unix.MS_REC
	}
	return nil
}

func (p *plan) mounts(s *specs.Spec) error {
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Destination, "/") {
			return errdefs.New(errdefs.Invalid, "mount destination %s is not absolute", m.Destination)
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return errdefs.New(errdefs.Unimplemented, "id-mapped mounts are not supported")
		}
		em, err := planMount(m.Type, m.Source, filepath.Clean(m.Destination), m.Options, "")
		if err != nil {
			return err
		}
		switch {
		case em.Kind == enter.MountBind:
			if !filepath.IsAbs(em.Source) {
				return errdefs.New(errdefs.Invalid, "the source %s of the mount on %s is not absolute", em.Source, em.Target)
			}
		case em.Type == "cgroup" || em.Type == "cgroup2":
			// Relative to the cgroup namespace, in which the container's own
			// cgroup is the root.
			em.Type, em.Source, em.Data = "cgroup2", "cgroup", ""
			em.Flags |= enter.RealTarget
		case em.Type == "proc" || em.Type == "sysfs":
			// A link here would put the kernel's files where the masked paths
			// do not look for them.
			em.Flags |= enter.RealTarget
		}
		p.Mounts = append(p.Mounts, em)
	}
	return nil
}

// Nodes and links that every container has, by the OCI runtime-spec.
var (
	defaultDevices = []enter.Device{
		{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3},
		{Path: "/dev/random", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 8},
		{Path: "/dev/full", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 7},
		{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Major: 5, Minor: 0},
		{Path: "/dev/zero", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 5},
		{Path: "/dev/urandom", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 9},
	}
	defaultLinks = []enter.Pair{
		{Key: "/dev/fd", Value: "/proc/self/fd"},
		{Key: "/dev/stdin", Value: "/proc/self/fd/0"},
		{Key: "/dev/stdout", Value: "/proc/self/fd/1"},
		{Key: "/dev/stderr", Value: "/proc/self/fd/2"},
		{Key: "/dev/ptmx", Value: "pts/ptmx"},
		{Key: "/dev/core", Value: "/proc/kcore"},
	}
)

// devices lists the nodes to make. Where /dev is bound from outside it is used
// as it is.
func (p *plan) devices(s *specs.Spec) error {
	for i := range p.Mounts {
		if m := &p.Mounts[i]; m.Target == "/dev" && m.Kind == enter.MountBind {
			return nil
		}
	}
	given := map[string]bool{}
	for _, d := range s.Linux.Devices {
		e := enter.Device{Path: filepath.Clean(d.Path), Major: uint64(d.Major), Minor: uint64(d.Minor), Mode: 0o666}
		if d.FileMode != nil {
			e.Mode = uint64(*d.FileMode & os.ModePerm)
		}
		switch d.Type {
		case "c", "u":
			e.Mode |= unix.S_IFCHR
		case "b":
			e.Mode |= unix.S_IFBLK
		case "p":
			e.Mode |= unix.S_IFIFO
			e.Major, e.Minor = 0, 0
		default:
			return errdefs.New(errdefs.Invalid, "device %s has unknown type %q", d.Path, d.Type)
		}
		if d.UID != nil {
			e.UID = uint64(*d.UID)
		}
		if d.GID != nil {
			e.GID = uint64(*d.GID)
		}
		if !filepath.IsAbs(e.Path) {
			return errdefs.New(errdefs.Invalid, "device path %s is not absolute", d.Path)
		}
		given[e.Path] = true
		if e.Path == "/dev/ptmx" || e.Path == "/dev/console" {
			continue // the container's own
		}
		p.Devices = append(p.Devices, e)
	}
	for _, d := range defaultDevices {
		if !given[d.Path] {
			p.Devices = append(p.Devices, d)
		}
	}
	p.Links = defaultLinks
	return nil
}

// sysctl adds a kernel parameter, if it is one that stays inside of the
// container's namespaces.
func (p *plan) sysctl(key, value string) error {
	name := key
	key = strings.ReplaceAll(key, ".", "/")
	denied := errdefs.New(errdefs.Denied, "sysctl %q is not in a separate kernel namespace", name)
	switch {
	case strings.Contains(key, "//") || strings.HasPrefix(key, "/") || strings.ContainsRune(key, 0):
		return errdefs.New(errdefs.Invalid, "bad name of a sysctl: %q", name)
	case strings.HasPrefix(key, "net/"):
		if !p.owns(unix.CLONE_NEWNET) {
			return denied
		}
	case strings.HasPrefix(key, "fs/mqueue/"), strings.HasPrefix(key, "kernel/shm"), strings.HasPrefix(key, "kernel/msg"), key == "kernel/sem":
		if !p.owns(unix.CLONE_NEWIPC) {
			return denied
		}
	case key == "kernel/domainname":
		if !p.owns(unix.CLONE_NEWUTS) {
			return denied
		}
	default:
		return denied
	}
	p.Sysctl = append(p.Sysctl, enter.Pair{Key: key, Value: value})
	return nil
}

// planProcess fills what a container's first process and an exec have in
// common.
func (r *Runtime) planProcess(c *enter.Config, s *specs.Process, terminal bool, groups []string, filter *seccomp.Program) error {
	if len(s.Args) == 0 {
		return errdefs.New(errdefs.Invalid, "no command specified")
	}
	for _, l := range [][]string{s.Args, s.Env, {s.Cwd}} {
		for _, v := range l {
			if strings.ContainsRune(v, 0) {
				return errdefs.New(errdefs.Invalid, "a string of the process holds a NUL byte: %q", v)
			}
		}
	}
	c.Args, c.Env, c.Cwd = s.Args, s.Env, s.Cwd
	if c.Cwd == "" {
		c.Cwd = "/"
	}
	if !filepath.IsAbs(c.Cwd) {
		return errdefs.New(errdefs.Invalid, "the working directory %q is invalid, it needs to be an absolute path", c.Cwd)
	}
	c.UID, c.GID = uint64(s.User.UID), uint64(s.User.GID)
	for _, g := range s.User.AdditionalGids {
		c.Gids = append(c.Gids, uint64(g))
	}
	if s.User.Umask != nil {
		c.Umask = uint64(*s.User.Umask)
		c.Flags |= enter.HasUmask
	}
	c.User, c.Groups = s.User.Username, groups
	if c.User != "" || len(c.Groups) > 0 || !hasEnv(c.Env, "HOME") {
		c.Flags |= enter.LookupUser
	}
	if terminal {
		c.Flags |= enter.Terminal
		if sz := s.ConsoleSize; sz != nil {
			c.Rows, c.Cols = uint64(sz.Height), uint64(sz.Width)
		}
	}
	for _, l := range s.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			return errdefs.New(errdefs.Invalid, "unknown resource limit %q", l.Type)
		}
		c.Rlimits = append(c.Rlimits, enter.Rlimit{Resource: n, Soft: l.Soft, Hard: l.Hard})
	}
	if s.NoNewPrivileges {
		c.Flags |= enter.NoNewPrivs
	}
	if s.ApparmorProfile != "" && s.ApparmorProfile != "unconfined" || s.SelinuxLabel != "" {
		return errdefs.New(errdefs.Unimplemented, "AppArmor and SELinux are not supported")
	}
	if s.Scheduler != nil || s.IOPriority != nil || s.ExecCPUAffinity != nil {
		return errdefs.New(errdefs.Unimplemented, "scheduler, ioPriority and execCPUAffinity are not supported")
	}
	if err := r.planCapabilities(c, s.Capabilities); err != nil {
		return err
	}
	if filter != nil {
		c.Seccomp, c.SeccompFlags = filter.Bytes, filter.Flags
	}
	return nil
}

func hasEnv(env []string, name string) bool {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok && v != "" {
			return true
		}
	}
	return false
}

var rlimits = map[string]uint64{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}
