package config

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"dhow/internal/errdefs"
)

// DefaultMachine is the name of the machine that the CLI uses where none is
// named.
const DefaultMachine = "default"

// MaxSocketPath is the longest path in bytes that a unix socket can have on
// every host: sockaddr_un's sun_path is 104 bytes with its NUL on macOS (108 on
// Linux).
const MaxSocketPath = 103

// socketName is as long as the longest name of a socket that dhow makes in one
// of its directories.
const socketName = "/usernet-xx.sock"

var machineName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// Layout names the files of one machine below dhow's home directory. Make it
// with NewLayout.
type Layout struct {
	Home    string // absolute
	Machine string
}

// HomeDir returns $DHOW_HOME, or ~/.dhow.
func HomeDir() (string, error) {
	if h := os.Getenv("DHOW_HOME"); h != "" {
		return h, nil
	}
	h, err := os.UserHomeDir()
	if err != nil {
		return "", errdefs.Wrap(errdefs.Invalid, err, "cannot tell the home directory: set DHOW_HOME to a directory for dhow's files")
	}
	return filepath.Join(h, ".dhow"), nil
}

// NewLayout returns the paths of the named machine ("" for the default one)
// below home ("" for HomeDir). It does no I/O beyond making home absolute. The
// error is Invalid where the name is malformed or home so long that a unix
// socket below it could not be bound.
func NewLayout(home, machine string) (Layout, error) {
	if home == "" {
		h, err := HomeDir()
		if err != nil {
			return Layout{}, err
		}
		home = h
	}
	if machine == "" {
		machine = DefaultMachine
	}
	if !machineName.MatchString(machine) {
		return Layout{}, errdefs.New(errdefs.Invalid, "invalid machine name %q: use up to 31 lower-case letters, digits and dashes, starting with a letter or digit", machine)
	}
	abs, err := filepath.Abs(home)
	if err != nil {
		return Layout{}, errdefs.Wrap(errdefs.Invalid, err, "invalid home directory %q", home)
	}
	l := Layout{Home: abs, Machine: machine}
	for _, p := range []string{l.MachineDir() + socketName, l.RunDir() + socketName} {
		if len(p) > MaxSocketPath {
			return Layout{}, errdefs.New(errdefs.Invalid,
				"dhow's home directory %s is too long: sockets in it would have paths of %d bytes, and the system allows %d; set DHOW_HOME to a shorter directory",
				abs, len(p), MaxSocketPath)
		}
	}
	return l, nil
}

// RunDir holds the sockets and the lock of the running dhowd.
func (l Layout) RunDir() string {
	if l.Machine == DefaultMachine {
		return filepath.Join(l.Home, "run")
	}
	return filepath.Join(l.Home, "run", l.Machine)
}

// DaemonSocket is dhowd's own API.
func (l Layout) DaemonSocket() string { return filepath.Join(l.RunDir(), "dhowd.sock") }

// DockerSocket is the Docker Engine API.
func (l Layout) DockerSocket() string { return filepath.Join(l.RunDir(), "docker.sock") }

// LockFile is locked by dhowd as long as it runs.
func (l Layout) LockFile() string { return filepath.Join(l.RunDir(), "dhowd.lock") }

// SpawnLock is locked by a client while it starts dhowd.
func (l Layout) SpawnLock() string { return filepath.Join(l.RunDir(), "spawn.lock") }

// LogFile is dhowd's log.
func (l Layout) LogFile() string {
	if l.Machine == DefaultMachine {
		return filepath.Join(l.Home, "log", "dhowd.log")
	}
	return filepath.Join(l.Home, "log", "dhowd-"+l.Machine+".log")
}

// MachineDir is the machine's private directory.
func (l Layout) MachineDir() string { return filepath.Join(l.Home, "machines", l.Machine) }

// ConfigFile holds the machine's settings.
func (l Layout) ConfigFile() string { return filepath.Join(l.MachineDir(), "config.json") }

// DataDisk is the machine's data disk: a sparse raw file.
func (l Layout) DataDisk() string { return filepath.Join(l.MachineDir(), "data.img") }

// ConsoleLog is what the guest's console printed since its last start.
func (l Layout) ConsoleLog() string { return filepath.Join(l.MachineDir(), "console.log") }

// CacheDir holds what can be made again.
func (l Layout) CacheDir() string { return filepath.Join(l.Home, "cache") }

// Make creates the directories of the layout that are not there, for the user
// alone (0700).
func (l Layout) Make() error {
	for _, d := range []string{l.Home, l.RunDir(), filepath.Dir(l.LogFile()), l.MachineDir(), l.CacheDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return errdefs.Wrap(errdefs.Denied, err, "cannot make the directory %s", d)
		}
	}
	// The sockets' directory guards them; it may be older than this rule.
	if runtime.GOOS != "windows" {
		if err := os.Chmod(l.RunDir(), 0o700); err != nil {
			return errdefs.Wrap(errdefs.Denied, err, "cannot protect the directory %s", l.RunDir())
		}
	}
	return nil
}
