//go:build linux

package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is a directory of the cgroup2 file system that holds the cgroups of
// containers.
type Tree struct {
	root   string // mount point of cgroup2
	parent string // path below it, "a/b"
	dir    *os.File
	keep   *Cgroup // of HoldKeys

	mu      sync.Mutex
	enabled map[string]bool // controllers that the children have
}

// Open makes the directory parent (a path below root, the mount point of
// cgroup2) with every controller that the kernel offers handed down to it.
// Doing so again is harmless.
func Open(root, parent string) (*Tree, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not a cgroup2 file system", root)
	}
	t := &Tree{root: root, parent: filepath.Clean("/" + parent)[1:], enabled: map[string]bool{}}
	path := root
	for part := range strings.SplitSeq(t.parent, "/") {
		if err := handDown(path); err != nil {
			return nil, err
		}
		if part == "" {
			break
		}
		path = filepath.Join(path, part)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	if t.parent != "" {
		if err := handDown(path); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(filepath.Join(path, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	for c := range strings.FieldsSeq(string(b)) {
		t.enabled[c] = true
	}
	t.dir, err = os.Open(path)
	return t, err
}

// handDown enables every controller of the cgroup at path for its children.
// One that the kernel refuses (its own rule, or another hierarchy has it) is
// left out.
func handDown(path string) error {
	have, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return err
	}
	control := filepath.Join(path, "cgroup.subtree_control")
	on, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	var want []string
	enabled := strings.Fields(string(on))
	for c := range strings.FieldsSeq(string(have)) {
		if !contains(enabled, c) {
			want = append(want, "+"+c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	if os.WriteFile(control, []byte(strings.Join(want, " ")), 0) == nil {
		return nil
	}
	for _, c := range want {
		_ = os.WriteFile(control, []byte(c), 0) // left out: a limit that needs it says so
	}
	return nil
}

func contains(l []string, s string) bool {
	for _, e := range l {
		if e == s {
			return true
		}
	}
	return false
}

// Has reports whether the children of the tree have the controller.
func (t *Tree) Has(controller string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.enabled[controller]
}

// Root is the mount point of cgroup2.
func (t *Tree) Root() string { return t.root }

// Close releases the tree; its directory and the cgroups in it stay.
func (t *Tree) Close() error { return errors.Join(t.releaseKeys(), t.dir.Close()) }

// Cgroup is one cgroup: a directory, held open.
type Cgroup struct {
	tree *Tree
	name string
	dir  *os.File

	devices bool // device rules are attached
}

// Create makes the cgroup name, or takes over an empty one that is there.
func (t *Tree) Create(name string) (*Cgroup, error) {
	err := unix.Mkdirat(int(t.dir.Fd()), name, 0o755)
	if errors.Is(err, unix.EEXIST) {
		// A predecessor of the same name that was not removed: with processes
		// in it this is not ours to take.
		c, err := t.Get(name)
		if err != nil {
			return nil, err
		}
		busy, err := c.Populated()
		if err == nil && busy {
			err = fmt.Errorf("cgroup %s: processes of another container are in it: %w", c.Path(), unix.EBUSY)
		}
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(t.root, t.parent, name), Err: err}
	}
	return t.Get(name)
}

// Get opens the cgroup name.
func (t *Tree) Get(name string) (*Cgroup, error) {
	fd, err := unix.Openat(int(t.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(t.root, t.parent, name), Err: err}
	}
	return &Cgroup{tree: t, name: name, dir: os.NewFile(uintptr(fd), name)}, nil
}

// Path is where the cgroup is in the file system of this process.
func (c *Cgroup) Path() string { return filepath.Join(c.tree.root, c.tree.parent, c.name) }

// RelPath is the cgroup's path below the mount point, as in /proc/PID/cgroup.
func (c *Cgroup) RelPath() string { return "/" + filepath.Join(c.tree.parent, c.name) }

// FD is the descriptor of the directory, for clone3 and BPF. It is good until Close.
func (c *Cgroup) FD() int { return int(c.dir.Fd()) }

// Close releases the descriptor; the cgroup stays.
func (c *Cgroup) Close() error { return c.dir.Close() }

// write writes value to the file name of the cgroup.
func (c *Cgroup) write(name, value string) error {
	fd, err := unix.Openat(c.FD(), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: c.Path() + "/" + name, Err: err}
	}
	for {
		_, err = unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			break
		}
	}
	_ = unix.Close(fd)
	if err != nil {
		return fmt.Errorf("write %q to %s/%s: %w", value, c.Path(), name, err)
	}
	return nil
}

// read returns the content of the file name of the cgroup.
func (c *Cgroup) read(name string) ([]byte, error) {
	fd, err := unix.Openat(c.FD(), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: c.Path() + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: c.Path() + "/" + name, Err: err}
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// event reads one key of cgroup.events.
func (c *Cgroup) event(key string) (bool, error) {
	b, err := c.read("cgroup.events")
	if err != nil {
		return false, err
	}
	v, ok := keyed(b, key)
	if !ok {
		return false, fmt.Errorf("%s/cgroup.events has no %q", c.Path(), key)
	}
	return v == 1, nil
}

// Populated reports whether the cgroup or one below it has processes.
func (c *Cgroup) Populated() (bool, error) { return c.event("populated") }

// Kill sends SIGKILL to every process of the cgroup and below.
func (c *Cgroup) Kill() error { return c.write("cgroup.kill", "1") }

// Freeze stops every process of the cgroup, or lets them go on, and waits
// until the kernel says that it is so.
func (c *Cgroup) Freeze(ctx context.Context, frozen bool) error {
	v := "0"
	if frozen {
		v = "1"
	}
	if err := c.write("cgroup.freeze", v); err != nil {
		return err
	}
	return c.await(ctx, "frozen", frozen)
}

// Frozen reports whether the cgroup is frozen.
func (c *Cgroup) Frozen() (bool, error) { return c.event("frozen") }

// AwaitEmpty waits until no process is left in the cgroup.
func (c *Cgroup) AwaitEmpty(ctx context.Context) error { return c.await(ctx, "populated", false) }

// await waits until the key of cgroup.events has the value. The kernel
// signals changes of that file to poll.
func (c *Cgroup) await(ctx context.Context, key string, want bool) error {
	fd, err := unix.Openat(c.FD(), "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: c.Path() + "/cgroup.events", Err: err}
	}
	defer unix.Close(fd)
	var buf [256]byte
	for {
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil && err != unix.EINTR {
			return &os.PathError{Op: "read", Path: c.Path() + "/cgroup.events", Err: err}
		}
		if v, ok := keyed(buf[:max(n, 0)], key); ok && (v == 1) == want {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("waiting for %s=%t of cgroup %s: %w", key, want, c.Path(), err)
		}
		// 50 ms bounds how late the end of ctx is noticed.
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		if _, err := unix.Poll(p, 50); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll cgroup.events: %w", err)
		}
	}
}

// Processes lists the process ids in the cgroup and all below it.
func (c *Cgroup) Processes() ([]int, error) {
	b, err := c.read("cgroup.procs")
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a threaded or domain-invalid cgroup
		return nil, err
	}
	pids := parsePids(nil, b)
	if n, err := c.descendants(); err != nil || n == 0 {
		return pids, err
	}
	err = filepath.WalkDir(c.Path(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil // removed while we walk
			}
			return err
		}
		if !d.IsDir() || path == c.Path() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err == nil {
			pids = parsePids(pids, b)
		}
		return nil
	})
	return pids, err
}

func parsePids(pids []int, b []byte) []int {
	for line := range bytes.Lines(b) {
		n := 0
		for _, d := range bytes.TrimSpace(line) {
			n = n*10 + int(d-'0')
		}
		if n > 0 {
			pids = append(pids, n)
		}
	}
	return pids
}

// descendants counts the cgroups below this one.
func (c *Cgroup) descendants() (uint64, error) {
	b, err := c.read("cgroup.stat")
	if err != nil {
		return 0, err
	}
	n, _ := keyed(b, "nr_descendants")
	return n, nil
}

// Remove removes the cgroup and those that the container made below it. It
// waits while the kernel still counts dying processes, until ctx ends. A
// cgroup that is gone is fine.
func (c *Cgroup) Remove(ctx context.Context) error {
	for wait := 250 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Unlinkat(int(c.tree.dir.Fd()), c.name, unix.AT_REMOVEDIR)
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EBUSY:
			if n, _ := c.descendants(); n > 0 {
				c.removeBelow()
				if unix.Unlinkat(int(c.tree.dir.Fd()), c.name, unix.AT_REMOVEDIR) == nil {
					return nil
				}
			}
		case unix.EINTR:
			continue
		default:
			return &os.PathError{Op: "rmdir", Path: c.Path(), Err: err}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w: %w", c.Path(), err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// removeBelow removes the cgroups below this one, deepest first, as far as
// they let themselves be removed.
func (c *Cgroup) removeBelow() {
	var dirs []string
	_ = filepath.WalkDir(c.Path(), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != c.Path() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = unix.Rmdir(dirs[i])
	}
}

// OOMKills is how many processes of the cgroup the kernel has killed for want
// of memory; 0 without the memory controller.
func (c *Cgroup) OOMKills() (uint64, error) {
	if !c.tree.Has("memory") {
		return 0, nil
	}
	b, err := c.read("memory.events")
	if err != nil {
		return 0, err
	}
	n, _ := keyed(b, "oom_kill")
	return n, nil
}

// keyed finds the number after key in a flat keyed file.
func keyed(b []byte, key string) (uint64, bool) {
	for line := range bytes.Lines(b) {
		if len(line) > len(key) && line[len(key)] == ' ' && string(line[:len(key)]) == key {
			return parseUint(bytes.TrimSpace(line[len(key)+1:])), true
		}
	}
	return 0, false
}

// parseUint reads a number of a kernel file; "max" is the largest.
func parseUint(b []byte) (v uint64) {
	if string(b) == "max" {
		return ^uint64(0)
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return v
		}
		v = v*10 + uint64(c-'0')
	}
	return v
}
