//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"dhow/guest/runtime/cgroup"
	"dhow/guest/runtime/seccomp"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Container is a container from Create to Delete. The embedded Process is its
// first one.
type Container struct {
	*Process
	runtime *Runtime
	cgroup  *cgroup.Cgroup
	groups  []string
	seccomp *seccomp.Program // nil = unconfined

	mu      sync.Mutex
	started bool
	paused  bool
	deleted bool
	execs   sync.WaitGroup
}

// CgroupPath is the container's cgroup as /proc/PID/cgroup shows it.
func (c *Container) CgroupPath() string { return c.cgroup.RelPath() }

// reapContainer waits for the first process. When it ends, the kernel has
// ended its PID namespace with it.
func (c *Container) reapContainer() {
	if err := c.reap(); err != nil {
		c.runtime.log.Error("wait for container", "id", c.id, "pid", c.pid, "err", err)
	}
	if n, err := c.cgroup.OOMKills(); err == nil && n > 0 {
		c.exit.OOMKilled = true
	}
	close(c.done)
}

// kill ends the first process by force.
func (c *Container) kill() {
	_ = c.Process.Signal(context.Background(), unix.SIGKILL)
}

// Signal sends sig to the container's first process, or to all of its
// processes. A container that has ended is NotFound.
func (c *Container) Signal(ctx context.Context, sig unix.Signal, all bool) error {
	if !all {
		return c.Process.Signal(ctx, sig)
	}
	if sig == unix.SIGKILL {
		return c.cgroup.Kill()
	}
	pids, err := c.cgroup.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("send signal %d to process %d: %w", sig, pid, err)
		}
	}
	return nil
}

// Pause freezes every process of the container and returns when they stand still.
func (c *Container) Pause(ctx context.Context) error { return c.freeze(ctx, true) }

// Resume lets the processes of a paused container go on.
func (c *Container) Resume(ctx context.Context) error { return c.freeze(ctx, false) }

func (c *Container) freeze(ctx context.Context, frozen bool) error {
	if err := c.cgroup.Freeze(ctx, frozen); err != nil {
		if frozen {
			err = errors.Join(err, c.cgroup.Freeze(context.WithoutCancel(ctx), false))
		}
		return err
	}
	c.mu.Lock()
	c.paused = frozen
	c.mu.Unlock()
	return nil
}

// Update changes the cgroup's limits: those that are set in res, and no others.
func (c *Container) Update(res *specs.LinuxResources) error { return c.cgroup.Limit(res) }

// Stats reads the usage counters of the container's cgroup.
func (c *Container) Stats(context.Context) (cgroup.Stats, error) { return c.cgroup.Stats() }

// Processes lists the ids of all processes of the container.
func (c *Container) Processes() ([]int, error) { return c.cgroup.Processes() }

// deleteTimeout bounds how long Delete waits for killed processes to be gone.
const deleteTimeout = 10 * time.Second

// Delete kills what is left of the container and removes its cgroup and state.
// A container that is deleted already is fine; after an error Delete may be
// called again.
func (c *Container) Delete(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	select {
	case <-c.done:
		// Without a PID namespace of its own, others may have outlived it.
		if busy, err := c.cgroup.Populated(); err != nil || busy {
			if err := c.killAll(ctx); err != nil {
				return err
			}
		}
	default:
		if err := c.killAll(ctx); err != nil {
			return err
		}
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return errdefs.Wrap(errdefs.Unavailable, ctx.Err(), "container %s: process %d does not end", c.id, c.pid)
	}
	c.execs.Wait()
	if err := c.cgroup.Remove(ctx); err != nil {
		return err
	}
	if err := c.removeState(); err != nil {
		return err
	}
	_ = c.cgroup.Close()
	_ = c.pidfd.Close()
	_ = c.control.Close()
	c.deleted = true
	c.runtime.forget(c.id)
	return nil
}

func (c *Container) killAll(ctx context.Context) error {
	if err := c.cgroup.Kill(); err != nil {
		return err
	}
	return c.cgroup.AwaitEmpty(ctx)
}
