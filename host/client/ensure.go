package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"dhow/host/config"
	"dhow/internal/errdefs"
)

// ReadyLine is what a dhowd without --foreground writes on its standard output
// once its sockets accept; it closes standard output then. A line that starts
// with ErrorPrefix says why it could not.
const (
	ReadyLine   = "ready"
	ErrorPrefix = "error: "
)

// spawnTimeout bounds the time from the start of the dhowd program until its
// sockets accept. No machine is started in it.
const spawnTimeout = 30 * time.Second

// EnsureDaemon returns a client of the layout's dhowd, and starts one in the
// background if none runs: the program $DHOWD, or dhowd beside the running
// executable. Of several callers at once one starts it and the others wait for
// it. dhowd outlives the caller.
func EnsureDaemon(ctx context.Context, l config.Layout) (*Client, error) {
	c := New(l.DaemonSocket())
	// The socket accepts only while its dhowd lives: a socket file that a
	// killed dhowd left behind refuses.
	err := c.Ping(ctx)
	if err == nil {
		return c, nil
	}
	if !unavailable(err) {
		return nil, err
	}
	if err := l.Make(); err != nil {
		return nil, err
	}
	lock, err := lockSpawn(ctx, l)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := c.Ping(ctx); err == nil || !unavailable(err) {
		return c, err // another caller has started it meanwhile
	}
	if err := spawn(ctx, l); err != nil {
		return nil, err
	}
	return c, nil
}

// lockSpawn takes the spawn lock. Its holder has it no longer than dhowd takes
// to listen, and only a race of two clients waits here: so it looks again every
// few milliseconds, which unlike a blocking lock can be cancelled.
func lockSpawn(ctx context.Context, l config.Layout) (io.Closer, error) {
	for {
		lock, err := config.Lock(l.SpawnLock())
		if err == nil {
			return lock, nil
		}
		if !errdefs.Is(err, errdefs.Conflict) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// program finds dhowd.
func program() (string, error) {
	if p := os.Getenv("DHOWD"); p != "" {
		return p, nil
	}
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return "", errdefs.Wrap(errdefs.Internal, err, "cannot tell where dhow is installed: set DHOWD to the path of dhowd")
	}
	name := "dhowd"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	p := filepath.Join(filepath.Dir(exe), name)
	if _, err := os.Stat(p); err != nil {
		return "", errdefs.Wrap(errdefs.NotFound, err, "dhowd is not beside %s: build it with `make build`, or set DHOWD to its path", exe)
	}
	return p, nil
}

// spawn starts dhowd in a session of its own and waits for its ready line.
func spawn(ctx context.Context, l config.Layout) error {
	p, err := program()
	if err != nil {
		return err
	}
	crash, err := openCrash(l.LogFile() + ".stderr")
	if err != nil {
		return errdefs.Wrap(errdefs.Denied, err, "cannot write dhowd's log")
	}
	defer crash.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p, "--home", l.Home, "--machine", l.Machine)
	cmd.Stdout, cmd.Stderr, cmd.Dir = in, crash, l.Home
	detach(cmd)
	err = cmd.Start()
	_ = in.Close() // dhowd has the other copy: its end of the pipe tells of its death
	if err != nil {
		return errdefs.Wrap(errdefs.Unavailable, err, "cannot start %s", p)
	}
	// Nobody else waits for it: dhowd lives on, the system reaps it after us.
	defer func() { _ = cmd.Process.Release() }()

	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = out.SetReadDeadline(time.Now().Add(spawnTimeout))
	line, err := bufio.NewReader(io.LimitReader(out, 64<<10)).ReadString('\n')
	line = strings.TrimSpace(line)
	switch {
	case line == ReadyLine:
		return nil
	case strings.HasPrefix(line, ErrorPrefix):
		return errdefs.New(errdefs.Unavailable, "dhowd did not start: %s", strings.TrimPrefix(line, ErrorPrefix))
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errdefs.New(errdefs.Unavailable, "dhowd did not get ready in %v; see %s", spawnTimeout, l.LogFile())
	}
	return errdefs.New(errdefs.Unavailable, "dhowd ended before it was ready; see %s and %s", l.LogFile(), crash.Name())
}

// openCrash opens the file for what the runtime prints when dhowd dies. What is
// in it is of a dhowd that died before: it is kept as path.1, in place of an
// older one.
func openCrash(path string) (*os.File, error) {
	if st, err := os.Stat(path); err == nil && st.Size() > 0 {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
}
