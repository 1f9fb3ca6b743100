package enter

import (
	"errors"
	"unsafe"
)

// The descriptors that dhow-enter starts with: the container's standard
// streams, the control socket, and then those that the config refers to.
const (
	ControlFD = 3 // stream socket to the agent
	FirstFD   = 4 // first of the extra descriptors, in the order of Config's references
)

// Flags of a Config.
const (
	Exec         uint64 = 1 << iota // join a running container instead of setting one up; no waiting before execve
	Terminal                        // open a pty in the container's devpts and use it as standard streams
	ReadonlyRoot                    // remount the root read-only once everything is in place
	NoNewPrivs                      // prctl(PR_SET_NO_NEW_PRIVS)
	Init                            // stay as the container's init, and run the program as its child
	LookupUser                      // User is set, or Groups: read /etc/passwd and /etc/group of the container
	HasUmask                        // set Umask
	Console                         // bind the pty on /dev/console
	SetHostname                     // set Hostname even if it is empty
	SetDomain                       // set Domainname
)

// Kinds of Mount.
const (
	MountFS   uint64 = iota // mount(2) of a file system
	MountBind               // clone of a mount or of a subtree
)

// Flags of a Mount.
const (
	RealTarget uint64 = 1 << iota // the target must be a real directory at its own path: no symlink on the way
	Recursive                     // bind with submounts
)

// Mount is one mount, in the order of the list.
type Mount struct {
	Kind, Flags uint64
	Type        string // file system type
	Source      string
	Target      string // absolute path in the container
	Data        string // options for the file system
	Dir         string // working directory for mount(2), so that Data can hold relative paths
	MS          uint64 // MS_ flags of mount(2)
	AttrSet     uint64 // MOUNT_ATTR_ flags for binds
	AttrClear   uint64
	RecSet      uint64 // the same for a bind with all its submounts
	RecClear    uint64
	Propagation uint64 // MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, with MS_REC; 0 = as it comes
}

// Device is a node to create. Mode holds type and permission bits as in stat(2).
type Device struct {
	Path         string
	Mode         uint64
	Major, Minor uint64
	UID, GID     uint64
}

// Pair is a name with a value, or a link with its target.
type Pair struct{ Key, Value string }

// Join says that the namespace behind descriptor FD is entered; Type holds its
// CLONE_NEW flags (several when FD is a pidfd).
type Join struct{ FD, Type uint64 }

// Rlimit is one resource limit.
type Rlimit struct{ Resource, Soft, Hard uint64 }

// Config is everything that dhow-enter needs to know. The zero value of a
// field means that nothing is done for it.
type Config struct {
	ID    string
	Flags uint64

	Join    []Join // entered first, in order; an exec is born in its namespaces instead
	Unshare uint64 // CLONE_NEW flags of the namespaces to make

	// The root file system.
	RootMounts      []Mount // mounted at RootPath, or below it by Target; none: RootPath is bound on itself
	RootPath        string
	InitPropagation uint64 // MS_ flags for the copied mount tree
	RootPropagation uint64 // MS_ flags for the new root; 0 = private
	Mounts          []Mount
	Devices         []Device
	Links           []Pair // path → target, made if missing
	Masked          []string
	ReadonlyPaths   []string

	Hostname, Domainname string
	Sysctl               []Pair // path below /proc/sys → value

	// The process.
	Args, Env []string
	Cwd       string
	UID, GID  uint64
	Gids      []uint64
	User      string   // docker's form: name|uid[:group|gid]; overrides UID, GID
	Groups    []string // further groups by name or number
	Rlimits   []Rlimit
	Umask     uint64

	// Capability bit sets, and the bounding bits to drop.
	CapDrop, CapEff, CapPrm, CapInh, CapAmb uint64

	Seccomp      []byte // classic BPF, struct sock_filter by struct sock_filter
	SeccompFlags uint64
	Keyring      string // session keyring to join or make
	Personality  uint64 // value + 1; 0 = unchanged
	Rows, Cols   uint64 // of the terminal
}

// Kinds of Report.
const (
	Ready    = 'R'
	PtyReady = 'T' // carries the master
	Failed   = 'E'
)

// Codes of a failed Report, beyond a bare errno.
const (
	CodeSetup      uint64 = iota // a step of the setup
	CodeExec                     // execve or the search for the program: Path is what was asked for
	CodeNotInPath                // Path has no slash and no directory of $PATH holds it
	CodeNoUser                   // Path is a user that /etc/passwd does not hold
	CodeNoGroup                  // Path is a group that /etc/group does not hold
	CodeBadUser                  // Path is a numeric id out of range
	CodeCwdEscaped               // the working directory is outside of the container
)

// Report is one answer of dhow-enter.
type Report struct {
	Kind  byte
	Code  uint64
	Errno uint64
	Op    string // what was being done, e.g. "mount"
	Path  string // on what
}

var errShort = errors.New("enter: message is cut short")

// encoder appends fields: numbers as varints, strings and lists with their
// length before them.
type encoder struct{ b []byte }

func (e *encoder) u(v uint64) {
	for v >= 0x80 {
		e.b = append(e.b, byte(v)|0x80)
		v >>= 7
	}
	e.b = append(e.b, byte(v))
}
func (e *encoder) s(s string) { e.u(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) ss(l []string) {
	e.u(uint64(len(l)))
	for _, s := range l {
		e.s(s)
	}
}

// decoder reads what encoder wrote. After the first error it gives zeros. Its
// strings share the memory of b.
type decoder struct {
	b   []byte
	bad bool
	a   *arena
}

func (d *decoder) u() (v uint64) {
	for i, shift := 0, 0; i < len(d.b) && shift < 64; i, shift = i+1, shift+7 {
		c := d.b[i]
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			d.b = d.b[i+1:]
			return v
		}
	}
	d.bad, d.b = true, nil
	return 0
}

func (d *decoder) bytes() []byte {
	n := d.u()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) s() string {
	b := d.bytes()
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// n reads the length of a list, which cannot be longer than the bytes left.
func (d *decoder) n() int {
	n := d.u()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return 0
	}
	return int(n)
}

func (d *decoder) ss() []string {
	n := d.n()
	if n == 0 {
		return nil
	}
	l := list[string](d.a, n)
	for i := range l {
		l[i] = d.s()
	}
	return l
}

// Encode appends r with its length to b.
func (r *Report) Encode(b []byte) []byte {
	e := encoder{b: scratch.bytes(64 + len(r.Op) + len(r.Path))[:0]}
	e.b = append(e.b, r.Kind)
	e.u(r.Code)
	e.u(r.Errno)
	e.s(r.Op)
	e.s(r.Path)
	n := len(e.b)
	return append(append(b, byte(n), byte(n>>8)), e.b...)
}

// DecodeReport reads one report from b and returns what follows it; ok is
// false while b holds less than a whole report. The strings share b's memory.
func DecodeReport(b []byte) (r Report, rest []byte, ok bool, err error) {
	if len(b) < 2 {
		return r, b, false, nil
	}
	n := int(b[0]) | int(b[1])<<8
	if len(b) < 2+n {
		return r, b, false, nil
	}
	if n == 0 {
		return r, b, false, errShort
	}
	d := decoder{b: b[3 : 2+n]}
	r = Report{Kind: b[2], Code: d.u(), Errno: d.u(), Op: d.s(), Path: d.s()}
	if d.bad {
		return r, b, false, errShort
	}
	return r, b[2+n:], true, nil
}
