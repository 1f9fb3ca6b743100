//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ExecConfig is what a further process of a running container is made from.
type ExecConfig struct {
	ID      string         // for messages only
	Process *specs.Process // args, env, cwd, user (see CreateConfig), capabilities, rlimits, no_new_privs
	IO      IO
}

const execNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// Exec runs a further process in the container; when it returns, its program
// runs. It has the namespaces, root, cgroup, seccomp filter and further groups
// of the container; all else is its own. An *ExecError says that
// the program could not be executed.
func (c *Container) Exec(ctx context.Context, ec ExecConfig) (*Process, error) {
	if ec.Process == nil {
		return nil, errdefs.New(errdefs.Invalid, "no process specified")
	}
	cfg := &enter.Config{ID: c.id, Flags: enter.Exec, Keyring: "_ses." + c.id}
	if err := c.runtime.planProcess(cfg, ec.Process, ec.IO.Terminal, c.groups, c.seccomp); err != nil {
		return nil, err
	}
	if err := c.beginExec(); err != nil {
		return nil, err
	}
	p, err := c.exec(ctx, cfg, ec)
	if err != nil {
		c.execs.Done()
		select {
		case <-c.done: // it ended meanwhile, which is why
			return nil, errdefs.Wrap(errdefs.Conflict, err, "container %s is not running", c.id)
		default:
			return nil, err
		}
	}
	c.runtime.waiters.Go(func() {
		defer c.execs.Done()
		if err := p.reap(); err != nil {
			c.runtime.log.Error("wait for exec", "container", c.id, "exec", p.id, "pid", p.pid, "err", err)
		}
		close(p.done)
		_ = p.pidfd.Close()
	})
	return p, nil
}

// beginExec checks that the container runs, and counts the exec.
func (c *Container) beginExec() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return errdefs.New(errdefs.Conflict, "container %s is not running", c.id)
	default:
	}
	switch {
	case !c.started || c.deleted:
		return errdefs.New(errdefs.Conflict, "container %s is not running", c.id)
	case c.paused:
		return errdefs.New(errdefs.Conflict, "container %s is paused, unpause the container before exec", c.id)
	}
	c.execs.Add(1)
	return nil
}

func (c *Container) exec(ctx context.Context, cfg *enter.Config, ec ExecConfig) (*Process, error) {
	// A duplicate, so that the container's own cannot be closed meanwhile.
	fd, err := unix.FcntlInt(rawFD(c.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate the pidfd: %w", err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	sc := spawnConfig{
		id: ec.ID, config: cfg, io: ec.IO, cgroupFD: c.cgroup.FD(), oomScore: ec.Process.OOMScoreAdj,
		request: enter.Request{PIDNS: true, Join: execNamespaces}, pidNS: fd,
	}
	p, err := c.runtime.spawn(ctx, sc)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) {
		// The container has made cgroups of its own and handed controllers
		// down, so that its top one may hold no process: go where its first
		// process is.
		dir, derr := c.ownCgroup()
		if derr != nil {
			return nil, errors.Join(err, derr)
		}
		defer dir.Close()
		sc.cgroupFD = int(dir.Fd())
		p, err = c.runtime.spawn(ctx, sc)
	}
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx, 0); err != nil {
		p.abort()
		return nil, err
	}
	_ = p.control.Close()
	return p, nil
}

// ownCgroup opens the cgroup that the first process is in now.
func (c *Container) ownCgroup() (*os.File, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSuffix(path, "\n")
			if own := c.cgroup.RelPath(); path != own && !strings.HasPrefix(path, own+"/") {
				return nil, errdefs.New(errdefs.Denied, "container %s: its first process is in the foreign cgroup %s", c.id, path)
			}
			return os.Open(filepath.Join(c.runtime.cgroups.Root(), path))
		}
	}
	return nil, fmt.Errorf("/proc/%d/cgroup has no line of version 2", c.pid)
}
