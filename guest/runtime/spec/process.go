//go:build linux

package spec

import (
	"path"
	"slices"
	"strings"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// AllCapabilities are those of a privileged container.
func AllCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
		"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
		"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

const allCaps = "ALL"

// capabilities applies --cap-add, --cap-drop and --privileged.
func capabilities(h *container.HostConfig) ([]string, error) {
	if h.Privileged {
		return AllCapabilities(), nil
	}
	add, err := normalize(h.CapAdd, "CapAdd")
	if err != nil {
		return nil, err
	}
	drop, err := normalize(h.CapDrop, "CapDrop")
	if err != nil {
		return nil, err
	}
	base := DefaultCapabilities()
	switch {
	case slices.Contains(add, allCaps):
		base, add = AllCapabilities(), nil
	case slices.Contains(drop, allCaps):
		base = nil
	}
	caps := []string{}
	for _, c := range base {
		if !slices.Contains(drop, c) {
			caps = append(caps, c)
		}
	}
	for _, c := range add {
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

// normalize gives names their canonical form: with or without CAP_, in any
// case, ALL for all.
func normalize(list []string, field string) ([]string, error) {
	var out []string
	for _, name := range list {
		n := strings.ToUpper(name)
		if n != allCaps && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if n != allCaps && !slices.Contains(AllCapabilities(), n) {
			return nil, errdefs.New(errdefs.Invalid, "invalid %s: unknown capability: %q", field, n)
		}
		out = append(out, n)
	}
	return out, nil
}

func capabilitySets(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
}

// process fills what a container's first process and its execs have in common;
// arguments and environment are the caller's.
func process(c *container.Config, h *container.HostConfig, caps []string, opts secOptions) (*specs.Process, error) {
	p := &specs.Process{
		Terminal:        c.Tty,
		User:            specs.User{Username: userOf(c.User), Umask: h.Umask},
		Cwd:             c.WorkingDir,
		Capabilities:    capabilitySets(caps),
		NoNewPrivileges: opts.noNewPrivs,
		OOMScoreAdj:     &h.OomScoreAdj,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !path.IsAbs(p.Cwd) {
		return nil, errdefs.New(errdefs.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", p.Cwd)
	}
	p.Cwd = path.Clean(p.Cwd)
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return nil, errdefs.New(errdefs.Invalid, "invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if c.Tty && h.ConsoleSize[0] > 0 && h.ConsoleSize[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: h.ConsoleSize[0], Width: h.ConsoleSize[1]}
	}
	for _, u := range h.Ulimits {
		if u == nil {
			continue
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return p, nil
}

// userOf is the user to look up. "0" stands for no user: unlike plain numbers
// it brings root's supplementary groups.
func userOf(user string) string {
	if user == "" {
		return "0"
	}
	return user
}

// environment is that of the container's first process: defaults, overridden
// by env. An entry without "=" takes the variable away.
func environment(hostname string, tty bool, env []string) []string {
	l := []string{"PATH=" + DefaultPath, "HOSTNAME=" + hostname}
	if tty {
		l = append(l, "TERM=xterm")
	}
	return override(l, env)
}

func override(l, env []string) []string {
	for _, kv := range env {
		name, _, set := strings.Cut(kv, "=")
		i := slices.IndexFunc(l, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		switch {
		case set && i >= 0:
			l[i] = kv
		case set:
			l = append(l, kv)
		case i >= 0:
			l = slices.Delete(l, i, i+1)
		}
	}
	return l
}

// ExecInput is a program to run in a running container, and the container as
// Input has it.
type ExecInput struct {
	Config     *container.Config
	HostConfig *container.HostConfig
	Hostname   string // "" = Config.Hostname

	Cmd, Env   []string
	User       string // "" = the container's
	WorkingDir string // "" = the container's
	Privileged bool
	Tty        bool
}

// Process makes the process of an exec. Its seccomp filter is the container's.
func Process(in ExecInput) (*specs.Process, error) {
	if len(in.Cmd) == 0 {
		return nil, errdefs.New(errdefs.Invalid, "No exec command specified")
	}
	opts, err := securityOptions(in.HostConfig.SecurityOpt)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(in.HostConfig)
	if err != nil {
		return nil, err
	}
	if in.Privileged {
		caps = AllCapabilities()
	}
	c := *in.Config
	c.Tty = in.Tty
	if in.User != "" {
		c.User = in.User
	}
	if in.WorkingDir != "" {
		c.WorkingDir = in.WorkingDir
	}
	p, err := process(&c, in.HostConfig, caps, opts)
	if err != nil {
		return nil, err
	}
	p.ConsoleSize = nil
	p.Args = in.Cmd
	if in.Hostname == "" {
		in.Hostname = c.Hostname
	}
	p.Env = override(environment(in.Hostname, in.Tty, c.Env), in.Env)
	return p, nil
}
