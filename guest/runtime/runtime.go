//go:build linux

package runtime

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"dhow/guest/runtime/cgroup"

	"golang.org/x/sys/unix"
)

// Options says where a Runtime keeps things.
type Options struct {
	StateDir     string // a file per container, on a tmpfs: nothing in it outlives a boot
	CgroupParent string // path below the cgroup2 mount, e.g. "docker"
	CgroupRoot   string // mount point of cgroup2; "" = /sys/fs/cgroup
	Enter        string // path of dhow-enter
	Log          *slog.Logger
}

// Runtime runs containers. Its methods may be called concurrently.
type Runtime struct {
	stateFD   *os.File // state directory
	rootPoint string   // empty directory on which each container mounts its root, in its own mount namespace
	enterFile *os.File // sealed copy, nil where Enter is on a read-only file system
	forker    forker
	null      *os.File
	cgroups   *cgroup.Tree
	capBound  uint64 // capabilities that the agent itself has

	ownOOMScore int
	log         *slog.Logger
	waiters     sync.WaitGroup

	mu         sync.Mutex
	containers map[string]*Container // nil while one is being created
}

// New prepares the directories, starts dhow-enter and returns a Runtime. Close releases it.
func New(o Options) (*Runtime, error) {
	r := &Runtime{
		rootPoint:  filepath.Join(o.StateDir, ".root"),
		log:        o.Log,
		containers: map[string]*Container{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if o.CgroupRoot == "" {
		o.CgroupRoot = "/sys/fs/cgroup"
	}
	if err := os.MkdirAll(r.rootPoint, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var err error
	if r.capBound, err = ownCapabilities(); err != nil {
		return nil, err
	}
	if r.forker.path, r.enterFile, err = seal(o.Enter); err != nil {
		return nil, fmt.Errorf("dhow-enter: %w", err)
	}
	if r.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		r.stateFD, err = os.Open(o.StateDir)
	}
	if err == nil {
		r.cgroups, err = cgroup.Open(o.CgroupRoot, o.CgroupParent)
	}
	if err == nil {
		if kerr := r.cgroups.HoldKeys(); kerr != nil {
			r.log.Warn("starts will be slower: the kernel's cgroup keys are not held", "error", kerr)
		}
	}
	if err == nil {
		r.ownOOMScore, err = ownOOMScore()
	}
	if err == nil {
		r.forker.mu.Lock()
		err = r.forker.start()
		r.forker.mu.Unlock()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close releases what the Runtime itself holds. Containers that have not been
// deleted go on, and the goroutines that wait for them end with them.
func (r *Runtime) Close() error {
	r.mu.Lock()
	n := len(r.containers)
	r.mu.Unlock()
	if n == 0 {
		r.waiters.Wait()
	}
	errs := []error{r.forker.Close()}
	for _, f := range []*os.File{r.enterFile, r.null, r.stateFD} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if r.cgroups != nil {
		errs = append(errs, r.cgroups.Close())
	}
	return errors.Join(errs...)
}

// seal returns a path by which the program at name can be executed and through
// which it cannot be written to: name itself if its file system is read-only,
// else a copy in a sealed memory file.
func seal(name string) (string, *os.File, error) {
	src, err := os.Open(name)
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(src.Fd()), &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return name, nil, nil
	}
	fd, err := unix.MemfdCreate("dhow-enter", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there is no MFD_EXEC, and all are executable
		fd, err = unix.MemfdCreate("dhow-enter", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return "", nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "dhow-enter")
	if _, err = io.Copy(f, src); err == nil {
		if _, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
			err = fmt.Errorf("seal: %w", err)
		}
	}
	if err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), f, nil
}

// ownCapabilities returns the bounding set of this process.
func ownCapabilities() (set uint64, err error) {
	for i := range 64 {
		v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err == unix.EINVAL { // beyond the kernel's last one
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read the bounding set: %w", err)
		}
		set |= uint64(v) << i
	}
	return set, nil
}

func ownOOMScore() (int, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
