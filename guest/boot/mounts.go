//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A mount is one call of mount(2), after making its directory if mkdir is set.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	mkdir                  bool
}

const hard = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// rootMounts are what stage 2 mounts, in order. devtmpfs, proc and sysfs are
// there already. Not bpffs: its first mount has the kernel look for and start
// programs, half a second under emulation, and the engine pins nothing.
var rootMounts = []mount{
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", true},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", true},
	{"mqueue", "/dev/mqueue", "mqueue", hard, "", true},
	{"cgroup2", cgroupRoot, "cgroup2", hard, "nsdelegate,memory_recursiveprot", false},
}

const (
	cgroupRoot  = "/sys/fs/cgroup"
	agentCgroup = cgroupRoot + "/dhow-agent"
	runDir      = "/run/dhow"
	dataDir     = "/var/lib/dhow"
)

func doMounts(list []mount) error {
	var errs []error
	for _, m := range list {
		if m.mkdir {
			if err := os.Mkdir(m.target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				errs = append(errs, err)
				continue
			}
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err))
		}
	}
	return errors.Join(errs...)
}

// links are what programs expect in /dev (devtmpfs has none).
var links = map[string]string{
	"/dev/fd":     "/proc/self/fd",
	"/dev/stdin":  "/proc/self/fd/0",
	"/dev/stdout": "/proc/self/fd/1",
	"/dev/stderr": "/proc/self/fd/2",
	"/dev/core":   "/proc/kcore",
}

func makeLinks() error {
	var errs []error
	for name, to := range links {
		if err := os.Symlink(to, name); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cgroups gives every controller to the root's children and makes the agent's
// group.
func cgroups() error {
	have, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	if c := strings.Fields(string(have)); len(c) > 0 {
		if err := writeFile(cgroupRoot+"/cgroup.subtree_control", "+"+strings.Join(c, " +")); err != nil {
			return err
		}
	}
	if err := os.Mkdir(agentCgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// writeFile writes to a file of the kernel's: no creation, one write.
func writeFile(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// sysctls are what containers need, or expect from a Linux server. Those of the
// modules that come later (bridge) are their user's to set.
var sysctls = [][2]string{
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv4/ping_group_range", "0 2147483647"}, // ping without privileges, as docker has it inside
	{"net/core/somaxconn", "4096"},
	{"kernel/panic", "1"},
	{"kernel/panic_on_oops", "1"}, // a machine in an unknown state must not go on writing
	{"kernel/pid_max", "4194304"},
	{"kernel/keys/root_maxkeys", "1000000"}, // one key ring per container
	{"kernel/keys/root_maxbytes", "25000000"},
	{"kernel/keys/maxkeys", "2000"},
	{"kernel/keys/maxbytes", "2000000"},
	{"kernel/kptr_restrict", "1"},
	{"fs/inotify/max_user_watches", "1048576"},
	{"fs/inotify/max_user_instances", "8192"},
	{"fs/inotify/max_queued_events", "65536"},
	{"fs/file-max", "9223372036854775807"},
	{"fs/aio-max-nr", "1048576"},
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_symlinks", "1"},
	{"vm/max_map_count", "262144"},           // search engines refuse less
	{"vm/overcommit_memory", "1"},            // a fork of a large process must not fail (databases ask for it)
	{"vm/stat_interval", "60"},               // seconds; idle CPUs are left alone
	{"vm/dirty_writeback_centisecs", "1500"}, // fewer wake-ups; fsync is what makes data durable
}

func setSysctls(list [][2]string) error {
	var errs []error
	for _, s := range list {
		if err := writeFile("/proc/sys/"+s[0], s[1]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setLimits sets what every process of the machine inherits. By way of package
// syscall, which then does not put the old limit back in children.
func setLimits() error {
	var errs []error
	n := syscall.Rlimit{Cur: 1048576, Max: 1048576}
	errs = append(errs, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &n))
	inf := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	for _, r := range []int{unix.RLIMIT_NPROC, unix.RLIMIT_CORE} {
		errs = append(errs, unix.Setrlimit(r, &inf))
	}
	return errors.Join(errs...)
}

// clockSlack is how far the machine's clock may be from the host's before init
// sets it. A machine with a clock chip is right to the second, and the host's
// time at start is older than that by what firmware and kernel took; one
// without is off by decades, one in local time by hours.
const clockSlack = time.Minute

// setClock sets the wall clock if it is off, given the host's time at the
// machine's start. The host sets it exactly when the agent answers.
func setClock(atStart time.Time) (set bool, err error) {
	if atStart.IsZero() {
		return false, nil
	}
	want := atStart.Add(uptime())
	if d := time.Since(want); d > -clockSlack && d < clockSlack {
		return false, nil
	}
	tv := unix.NsecToTimeval(want.UnixNano())
	return true, unix.Settimeofday(&tv)
}
