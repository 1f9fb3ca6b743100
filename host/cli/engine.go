package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/internal/errdefs"
	"dhow/internal/version"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	dockerclient "github.com/moby/moby/client"
)

// engine is how the commands reach dhowd and, through it, the docker socket.
type engine struct {
	layout config.Layout
	docker *command.DockerCli

	once sync.Once
	err  error
}

// clientOption makes docker's client dial our socket, after the machine was
// started. The client library evaluates it when a command first needs the
// engine, so that a command that never does boots nothing; the machine is
// started right there, because the library's first request has a time-out that
// is shorter than a boot may take. The error, if any, comes from the dial, where
// every command handles it with its own exit code.
func (e *engine) clientOption() dockerclient.Opt {
	return first(dockerclient.WithDialContext(e.dial), func() { _ = e.ensure(context.Background()) })
}

// first returns o, preceded by f. Its type parameter stands for the client's
// unexported configuration.
func first[C any](o func(*C) error, f func()) func(*C) error {
	return func(c *C) error {
		f()
		return o(c)
	}
}

func (e *engine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := e.ensure(ctx); err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", e.layout.DockerSocket())
}

// explain replaces what docker's client library says when its connection fails
// by why the machine did not start, and keeps the exit code of the command.
func (e *engine) explain(err error) error {
	if err == nil || e.err == nil {
		return err
	}
	return dockercli.StatusError{Status: "dhow: " + errdefs.Sentence(e.err), StatusCode: status(err)}
}

// ensure starts dhowd and the machine where they do not run, once per process,
// and shows the progress on standard error where that is a terminal.
func (e *engine) ensure(ctx context.Context) error {
	e.once.Do(func() {
		c, err := client.EnsureDaemon(ctx, e.layout)
		if err == nil {
			err = e.startUnlessRunning(ctx, c)
		}
		e.err = err
	})
	return e.err
}

// startUnlessRunning starts the machine if it is off. A dhowd of another
// version, from before an update, is replaced if its machine is off; if not, the
// user is told, because only they may stop their containers.
func (e *engine) startUnlessRunning(ctx context.Context, c *client.Client) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if s.Version != version.Version {
		if s.State == client.Running || s.State == client.Starting {
			fmt.Fprintf(e.docker.Err(), "WARNING: the machine was started by dhow %s and this is dhow %s: run `dhow machine restart` to update it\n", s.Version, version.Version)
		} else {
			if err := c.Quit(ctx, client.StopOptions{}, nil); err != nil {
				return err
			}
			if c, err = client.EnsureDaemon(ctx, e.layout); err != nil {
				return err
			}
		}
	}
	if s.State == client.Running {
		return nil
	}
	return e.start(ctx, c)
}

// start starts the machine, and makes the docker context that leads to it.
func (e *engine) start(ctx context.Context, c *client.Client) error {
	p := newProgress(e.docker.Err())
	err := c.Start(ctx, func(step string) { p.show("Starting the machine: " + step) })
	p.clear()
	if err != nil {
		return err
	}
	if err := ensureContext(e.docker.ContextStore(), "unix://"+e.layout.DockerSocket()); err != nil {
		// The engine works without: only `docker --context dhow` does not.
		fmt.Fprintf(e.docker.Err(), "WARNING: the docker context %q was not made: %v\n", ContextName, err)
	}
	return nil
}

// running returns a client of the dhowd that runs, and false if none does.
func (e *engine) running(ctx context.Context) (*client.Client, bool, error) {
	c := client.New(e.layout.DaemonSocket())
	switch err := c.Ping(ctx); {
	case err == nil:
		return c, true, nil
	case errdefs.Is(err, errdefs.Unavailable), errors.Is(err, os.ErrNotExist):
		return nil, false, nil
	default:
		return nil, false, err
	}
}
