//go:build linux

package runtime

import (
	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capNames are the kernel's capabilities by number (linux/capability.h).
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

var capBits = func() map[string]uint64 {
	m := make(map[string]uint64, len(capNames))
	for i, n := range capNames {
		m[n] = 1 << i
	}
	return m
}()

// capSet translates names to bits. Capabilities that the agent does not have
// cannot be given, and are left out, as other runtimes do.
func (r *Runtime) capSet(names []string) (set uint64, err error) {
	for _, n := range names {
		bit, ok := capBits[n]
		if !ok {
			return 0, errdefs.New(errdefs.Invalid, "unknown capability %q", n)
		}
		set |= bit
	}
	return set & r.capBound, nil
}

// planCapabilities fills the capability sets; nil means none at all.
func (r *Runtime) planCapabilities(c *enter.Config, s *specs.LinuxCapabilities) (err error) {
	if s == nil {
		s = &specs.LinuxCapabilities{}
	}
	var bounding uint64
	for _, f := range []struct {
		set   *uint64
		names []string
	}{{&bounding, s.Bounding}, {&c.CapEff, s.Effective}, {&c.CapPrm, s.Permitted}, {&c.CapInh, s.Inheritable}, {&c.CapAmb, s.Ambient}} {
		if *f.set, err = r.capSet(f.names); err != nil {
			return err
		}
	}
	c.CapDrop = r.capBound &^ bounding
	c.CapAmb &= c.CapPrm & c.CapInh // the kernel allows no others
	return nil
}
