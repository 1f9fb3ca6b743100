//go:build linux

package spec

import (
	"maps"
	"strconv"
	"strings"

	"dhow/guest/runtime/seccomp"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Input is a container as the API knows it, and what Build cannot know by
// itself. Config and HostConfig are taken as they are after create: the
// image's config merged in.
type Input struct {
	ID         string
	Config     *container.Config
	HostConfig *container.HostConfig
	Args       []string // the command with its arguments; nil = Config's Entrypoint and Cmd
	Hostname   string   // "" = Config.Hostname

	// Mounts are the resolved binds and volumes, and the files that the engine
	// provides (/etc/hosts and its like). tmpfs mounts of the HostConfig are
	// not to be given.
	Mounts []Mount

	CPUs    int    // see Default
	ShmPath string // directory to bind on /dev/shm, for the ipc modes host, shareable and container; "" = a tmpfs of its own

	// Namespaces of other containers, where the modes say container:…
	// ("/proc/PID/ns/net"). Build refuses the mode where the path is missing.
	NetPath, IPCPath, PIDPath string

	// Devices of the machine: all of them for a privileged container, and the
	// nodes at a path (a directory gives those below it) for --device and the
	// limits that name a device.
	HostDevices func() ([]specs.LinuxDevice, error)
	DeviceAt    func(path string) ([]specs.LinuxDevice, error)
}

// Mount is a bind mount into the container.
type Mount struct {
	Source, Destination  string
	ReadOnly             bool
	NonRecursive         bool   // without what is mounted below the source
	ReadOnlyNonRecursive bool   // read-only, but not what is mounted below the source
	Propagation          string // "" = rprivate
}

// Annotations by which a spec asks for what the runtime-spec has no field for.
const (
	AnnotationInit   = "dhow.init"   // "true": an init of the runtime's runs the program (--init)
	AnnotationGroups = "dhow.groups" // further groups, by name or number, comma between (--group-add)
)

// Build makes the spec of a container. Requests that contradict themselves
// are errors of class Invalid in docker's words, those that dhow does not
// serve of class Unimplemented. Process.User.Username holds the user as the
// request names it, to be looked up in the container's own files.
func Build(in Input) (*specs.Spec, error) {
	h, c := in.HostConfig, in.Config
	if err := refuse(h); err != nil {
		return nil, err
	}
	s := Default(in.CPUs)
	s.Root.Readonly = h.ReadonlyRootfs
	s.Linux.Sysctl = map[string]string{}
	annotate(s, h)
	opts, err := securityOptions(h.SecurityOpt)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(h)
	if err != nil {
		return nil, err
	}
	if s.Process, err = process(c, h, caps, opts); err != nil {
		return nil, err
	}
	s.Process.Args = in.Args
	if in.Args == nil {
		s.Process.Args = append(append([]string{}, c.Entrypoint...), c.Cmd...)
	}
	if len(s.Process.Args) == 0 {
		return nil, errdefs.New(errdefs.Invalid, "no command specified")
	}
	s.Hostname, s.Domainname = c.Hostname, c.Domainname
	if in.Hostname != "" {
		s.Hostname = in.Hostname
	}
	s.Process.Env = environment(s.Hostname, c.Tty, c.Env)
	if err := namespaces(s, &in); err != nil {
		return nil, err
	}
	if err := mounts(s, &in); err != nil {
		return nil, err
	}
	if h.MaskedPaths != nil {
		s.Linux.MaskedPaths = h.MaskedPaths
	}
	if h.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = h.ReadonlyPaths
	}
	if h.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	for k, v := range h.Sysctls {
		s.Linux.Sysctl[k] = v
	}
	if err := devices(s, &in); err != nil {
		return nil, err
	}
	if err := resources(s.Linux.Resources, &in); err != nil {
		return nil, err
	}
	s.Linux.Seccomp, err = filter(opts.seccomp, h.Privileged, caps)
	return s, err
}

// annotate sets the annotations: the request's, and ours over them.
func annotate(s *specs.Spec, h *container.HostConfig) {
	s.Annotations = map[string]string{}
	maps.Copy(s.Annotations, h.Annotations)
	delete(s.Annotations, AnnotationInit)
	delete(s.Annotations, AnnotationGroups)
	// Where another container's init or the machine's reaps, none is needed.
	if h.Init != nil && *h.Init && h.PidMode.IsPrivate() {
		s.Annotations[AnnotationInit] = "true"
	}
	if len(h.GroupAdd) > 0 {
		s.Annotations[AnnotationGroups] = strings.Join(h.GroupAdd, ",")
	}
}

// refuse names what dhow does not serve.
func refuse(h *container.HostConfig) error {
	switch {
	case h.CgroupParent != "":
		return errdefs.New(errdefs.Unimplemented, "--cgroup-parent is not supported")
	case len(h.DeviceRequests) > 0:
		return errdefs.New(errdefs.Unimplemented, "could not select device driver: GPUs and other device drivers are not supported")
	case !h.UsernsMode.Valid():
		return errdefs.New(errdefs.Invalid, "invalid user namespace mode: %s", h.UsernsMode)
	case h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0:
		return errdefs.New(errdefs.Invalid, "kernel does not support CPU real-time scheduler")
	case !h.Isolation.IsDefault():
		return errdefs.New(errdefs.Invalid, "invalid isolation %q on linux", h.Isolation)
	}
	return nil
}

// secOptions are the values of --security-opt that mean something here.
type secOptions struct {
	noNewPrivs bool
	seccomp    string // profile in JSON, "unconfined", or "" for the default
}

// securityOptions reads --security-opt. Labels and AppArmor profiles are taken
// and have no effect, as on any machine without these modules.
func securityOptions(list []string) (o secOptions, err error) {
	for _, opt := range list {
		if opt == "no-new-privileges" {
			o.noNewPrivs = true
			continue
		}
		if opt == "disable" {
			continue
		}
		k, v, ok := strings.Cut(opt, "=")
		if !ok {
			k, v, ok = strings.Cut(opt, ":")
		}
		if !ok {
			return o, errdefs.New(errdefs.Invalid, "invalid --security-opt 1: %q", opt)
		}
		switch k {
		case "label", "apparmor":
		case "seccomp":
			o.seccomp = v
		case "no-new-privileges":
			if o.noNewPrivs, err = strconv.ParseBool(v); err != nil {
				return o, errdefs.New(errdefs.Invalid, "invalid --security-opt 2: %q", opt)
			}
		case "writable-cgroups":
			return o, errdefs.New(errdefs.Unimplemented, "--security-opt writable-cgroups is not supported")
		default:
			return o, errdefs.New(errdefs.Invalid, "invalid --security-opt 2: %q", opt)
		}
	}
	return o, nil
}

// filter is the seccomp profile that applies. A privileged container has one
// only if it asks for it.
func filter(profile string, privileged bool, caps []string) (*specs.LinuxSeccomp, error) {
	switch {
	case profile == "unconfined", profile == "" && privileged:
		return nil, nil
	case profile == "", profile == "builtin":
		return seccomp.Default(caps)
	}
	return seccomp.Load([]byte(profile), caps)
}

// namespaces applies the modes.
func namespaces(s *specs.Spec, in *Input) error {
	h := in.HostConfig
	drop := map[specs.LinuxNamespaceType]bool{}
	path := map[specs.LinuxNamespaceType]string{}
	join := func(t specs.LinuxNamespaceType, p, mode string) error {
		if p == "" {
			return errdefs.New(errdefs.Conflict, "cannot join the %s namespace of a container that is not running: %s", t, mode)
		}
		path[t] = p
		return nil
	}
	var err error
	switch {
	case h.NetworkMode.IsHost():
		drop[specs.NetworkNamespace] = true
	case h.NetworkMode.IsContainer():
		err = join(specs.NetworkNamespace, in.NetPath, string(h.NetworkMode))
	default:
		// Both are harmless inside of a network namespace, and save programs
		// from needing privileges: docker sets them too.
		s.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647"
		s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	if err != nil {
		return err
	}
	switch m := h.IpcMode; {
	case !m.Valid():
		return errdefs.New(errdefs.Invalid, "invalid IPC mode: %v", m)
	case m.IsHost():
		drop[specs.IPCNamespace] = true
	case m.IsContainer():
		err = join(specs.IPCNamespace, in.IPCPath, string(m))
	}
	if err != nil {
		return err
	}
	switch m := h.PidMode; {
	case !m.Valid():
		return errdefs.New(errdefs.Invalid, "invalid PID mode: %v", m)
	case m.IsHost():
		drop[specs.PIDNamespace] = true
	case m.IsContainer():
		err = join(specs.PIDNamespace, in.PIDPath, string(m))
	}
	if err != nil {
		return err
	}
	if !h.UTSMode.Valid() {
		return errdefs.New(errdefs.Invalid, "invalid UTS mode: %v", h.UTSMode)
	}
	if h.UTSMode.IsHost() {
		drop[specs.UTSNamespace] = true
		s.Hostname, s.Domainname = "", ""
	}
	if !h.CgroupnsMode.Valid() {
		return errdefs.New(errdefs.Invalid, "invalid cgroup namespace mode: %v", h.CgroupnsMode)
	}
	if h.CgroupnsMode.IsHost() {
		drop[specs.CgroupNamespace] = true
	}
	list := s.Linux.Namespaces[:0]
	for _, ns := range s.Linux.Namespaces {
		if !drop[ns.Type] {
			list = append(list, specs.LinuxNamespace{Type: ns.Type, Path: path[ns.Type]})
		}
	}
	s.Linux.Namespaces = list
	return nil
}
