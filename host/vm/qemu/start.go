package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dhow/host/vm"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// maxSocketPath is the longest path of a unix socket that every host takes
// (macOS: 104 bytes with the final NUL).
const maxSocketPath = 103

// steps is the start of a machine. The machine's end undoes the same list,
// so an undo must also work for what has gone by itself.
func (m *Machine) steps() []steps.Step {
	p := &m.plan
	p.cfg, p.arch, p.qmpFD, p.noSandbox = m.cfg, m.opts.Arch, fdInherited, m.opts.NoSandbox
	p.initrd = filepath.Join(m.cfg.Dir, "initrd")
	p.vsock = filepath.Join(m.cfg.Dir, "vsock.sock")
	var served sync.WaitGroup
	return []steps.Step{
		{Name: "check the settings", Do: func(context.Context) error { return m.check() }},
		{Name: "find QEMU", Do: func(context.Context) (err error) {
			m.binary, err = find(m.opts.Arch, m.opts.Binary)
			p.firmware = firmware(m.opts.Arch, m.binary)
			return err
		}},
		{Name: "choose the acceleration", Do: func(context.Context) (err error) {
			p.accel, err = chooseAcceleration(m.probe, m.opts.Arch, m.opts.Accel)
			m.mu.Lock()
			m.accel = p.accel
			m.mu.Unlock()
			return err
		}},
		{Name: "make the machine's directory", Do: func(context.Context) error { return privateDir(m.cfg.Dir) }},
		{Name: "wait for the data disk", Do: func(ctx context.Context) error {
			if m.cfg.DataDisk == "" {
				return nil
			}
			return awaitDisk(ctx, m.cfg.DataDisk)
		}},
		{
			Name: "open the console's log",
			Do: func(context.Context) (err error) {
				m.console, err = vm.OpenConsole(filepath.Join(m.cfg.Dir, "console.log"))
				return err
			},
			Undo: func(context.Context) error { return m.console.Close() },
		},
		{
			Name: "write the boot file",
			Do: func(context.Context) error {
				if err := ignoreNotExist(os.Remove(p.initrd)); err != nil { // of a dhowd that was killed
					return err
				}
				return vm.WriteInitrd(p.initrd, m.cfg.Initrd, m.cfg.Boot)
			},
			Undo: func(context.Context) error { return ignoreNotExist(os.Remove(p.initrd)) },
		},
		{
			Name: "serve vsock",
			Do: func(context.Context) error {
				l, err := listenUnix(p.vsock)
				if err != nil {
					return err
				}
				served.Go(func() {
					if err := m.vsock.Serve(l); err != nil {
						m.log.Error("vsock is not served any more", "error", err)
					}
				})
				return nil
			},
			Undo: func(context.Context) error {
				err := m.vsock.Close()
				served.Wait()
				_ = ignoreNotExist(os.Remove(p.vsock)) // the listener has done so already
				return err
			},
		},
		{
			Name: "run QEMU",
			Do:   func(context.Context) error { return m.spawn() },
			Undo: func(context.Context) error {
				err := m.process.reap(time.After(killTimeout))
				_ = m.monitor.close()
				m.mu.Lock()
				m.process = nil
				m.mu.Unlock()
				return err
			},
		},
		{Name: "greet QEMU's monitor", Do: func(ctx context.Context) error { return m.mapError(ctx, m.greet(ctx)) }},
		// QEMU has it in memory now, and nobody else needs it.
		{Name: "remove the boot file", Do: func(context.Context) error { return os.Remove(p.initrd) }},
		{Name: "run the guest", Do: func(ctx context.Context) error { return m.mapError(ctx, m.cont(ctx)) }},
	}
}

func (m *Machine) check() error {
	if err := m.cfg.Validate(); err != nil {
		return err
	}
	if m.cfg.Initrd == "" {
		return errdefs.New(errdefs.Invalid, "the machine has no initial file system")
	}
	for _, s := range []string{m.plan.vsock, m.cfg.NetSocket} {
		if len(s) > maxSocketPath {
			return errdefs.New(errdefs.Invalid, "the path %s is too long for a socket (%d bytes, at most %d)", s, len(s), maxSocketPath)
		}
	}
	for _, f := range []string{m.cfg.Kernel, m.cfg.Initrd, m.cfg.Root, m.cfg.DataDisk} {
		if f == "" {
			continue
		}
		if _, err := os.Stat(f); err != nil {
			return errdefs.Wrap(errdefs.NotFound, err, "a file of the machine is missing: %s", f)
		}
	}
	return nil
}

// privateDir makes dir, or takes away what others may do there.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = os.Chmod(dir, 0o700)
	}
	return err
}

// listenUnix listens on a socket of mode 0600, in place of one that a killed
// process left.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := ignoreNotExist(os.Remove(path)); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Nobody could reach it before: its directory is private.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (m *Machine) spawn() error {
	conn, theirs, err := socketPair()
	if err != nil {
		return err
	}
	a := args(m.plan)
	m.log.Debug("running qemu", "binary", m.binary, "args", a)
	m.mu.Lock()
	defer m.mu.Unlock() // Kill sees either no process or one that it can kill
	p, err := spawn(m.binary, a, theirs, func(r *os.File) { m.console.Follow(r) })
	if err != nil {
		_ = conn.Close()
		return errdefs.Wrap(errdefs.Unavailable, err, "%s does not run", m.binary)
	}
	m.process = p
	m.monitor = newQMP(conn, m.event)
	return nil
}

// greet waits until QEMU has made the machine: it answers commands from then on.
func (m *Machine) greet(ctx context.Context) error {
	if err := m.monitor.handshake(ctx); err != nil {
		return err
	}
	if v := m.monitor.version; tooOld(v[0], v[1]) {
		return errdefs.New(errdefs.Unavailable, "%s", oldSentence(m.binary, fmt.Sprintf("%d.%d", v[0], v[1])))
	}
	var status struct{ Status string }
	if err := m.monitor.execute(ctx, "query-status", &status); err != nil {
		return err
	}
	if status.Status != "prelaunch" {
		return errdefs.New(errdefs.Internal, "QEMU says that the machine is %q before its start", status.Status)
	}
	return nil
}

func (m *Machine) cont(ctx context.Context) error {
	if err := m.monitor.execute(ctx, "cont", nil); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.killed {
		return context.Canceled
	}
	if err := m.life.To(vm.Running); err != nil && m.life.State() != vm.Stopping {
		return err
	}
	return nil // Stopping: the guest was fast
}

func shutdownReason(data json.RawMessage) string {
	var d struct{ Reason string }
	if err := json.Unmarshal(data, &d); err != nil || d.Reason == "" {
		return "unknown"
	}
	return d.Reason
}
