//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"dhow/guest/runtime/cgroup"
	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"
	"dhow/internal/steps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Mount is a mount of the root file system, with the fields of a snapshot's.
type Mount struct {
	Type, Source, Target string
	Options              []string
	Dir                  string // working directory of mount(2), for relative paths in Options
}

// CreateConfig is what a container is made from. Nothing in it may change
// while Create runs, and nothing of it is kept.
type CreateConfig struct {
	ID string
	// Spec is an OCI runtime-spec 1.2. Process.User.Username, where it is set,
	// is docker's name|uid[:group|gid], looked up in the container's own
	// /etc/passwd and /etc/group in place of the numbers (docker's default is
	// "0", which, unlike the number, brings the supplementary groups that
	// /etc/group lists). The annotations of package spec ask for what the
	// runtime-spec has no field for.
	Spec *specs.Spec
	// Rootfs is mounted inside of the container's own mount namespace, so that
	// nobody else sees it and it goes away by itself; empty: Spec.Root.Path is
	// used as it is.
	Rootfs []Mount
	IO     IO
}

// Create clones the container's first process into its cgroup and namespaces,
// sets everything up and returns with it waiting for Start. On an error
// nothing is left behind. Errors of the set-up are *SetupError; a program that
// is missing or not executable is an *ExecError already here, as the look-up
// is done by the container's user in the container's files.
func (r *Runtime) Create(ctx context.Context, cc CreateConfig) (_ *Container, err error) {
	if err := checkID(cc.ID); err != nil {
		return nil, err
	}
	p, err := r.planContainer(&cc)
	if err != nil {
		return nil, err
	}
	if err := r.reserve(cc.ID); err != nil {
		return nil, err
	}
	c := &Container{runtime: r, groups: p.Groups, seccomp: p.filter}
	err = steps.Run(ctx, []steps.Step{
		{Name: "make the cgroup", Do: func(context.Context) (err error) {
			c.cgroup, err = r.cgroups.Create(cc.ID)
			return err
		}, Undo: c.removeCgroup},
		{Name: "limit the cgroup", Do: func(context.Context) error {
			return c.limit(cc.Spec.Linux.Resources)
		}},
		{Name: "clone the process", Do: func(ctx context.Context) (err error) {
			c.Process, err = r.clone(ctx, p, c.cgroup, cc.IO)
			return err
		}, Undo: func(context.Context) error {
			c.abort()
			return nil
		}},
		{Name: "write the state", Do: func(context.Context) error {
			return c.writeState() // while the process sets itself up
		}, Undo: func(context.Context) error {
			return c.removeState()
		}},
		{Name: "set up the container", Do: func(ctx context.Context) error {
			return c.await(ctx, enter.Ready)
		}},
	})
	if err != nil {
		r.forget(cc.ID)
		return nil, err
	}
	r.mu.Lock()
	r.containers[cc.ID] = c
	r.mu.Unlock()
	r.waiters.Go(c.reapContainer)
	return c, nil
}

// clone starts the first process of a container by its plan.
func (r *Runtime) clone(ctx context.Context, p *plan, cg *cgroup.Cgroup, stdio IO) (*Process, error) {
	sc := spawnConfig{
		id: p.ID, config: &p.Config, io: stdio, cgroupFD: cg.FD(), oomScore: p.oomScore,
		request: enter.Request{CloneFlags: uint32(p.cloneFlags)},
	}
	defer func() {
		for _, f := range sc.extra {
			_ = f.Close()
		}
	}()
	for i, j := range p.joins {
		f, err := openNS(j.path)
		if err != nil {
			return nil, err
		}
		sc.extra = append(sc.extra, f)
		p.Join = append(p.Join, enter.Join{FD: uint64(enter.FirstFD + i), Type: j.flag})
	}
	if p.pidNS != "" {
		f, err := openNS(p.pidNS)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		sc.request.PIDNS, sc.pidNS = true, int(rawFD(f))
	}
	return r.spawn(ctx, sc)
}

func openNS(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Conflict, err, "cannot join the namespace %s", path)
	}
	return f, nil
}

// checkID keeps an id from meaning anything in a path.
func checkID(id string) error {
	if id == "" || len(id) > 200 || id[0] == '.' || strings.ContainsAny(id, "/\x00\n") {
		return errdefs.New(errdefs.Invalid, "bad container id %q", id)
	}
	return nil
}

// reserve takes the id, so that no second Create can.
func (r *Runtime) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.containers[id]; taken {
		return errdefs.New(errdefs.Conflict, "container with given ID already exists: %s", id)
	}
	r.containers[id] = nil
	return nil
}

func (r *Runtime) forget(id string) {
	r.mu.Lock()
	delete(r.containers, id)
	r.mu.Unlock()
}

func (c *Container) removeCgroup(ctx context.Context) error {
	return errors.Join(c.cgroup.Remove(ctx), c.cgroup.Close())
}

// limit sets the cgroup's limits and device rules.
func (c *Container) limit(res *specs.LinuxResources) error {
	if err := c.cgroup.Limit(res); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}
