//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"dhow/guest/runtime"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

func TestAStartThatFailsLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		arrange  func(*world)
		cmd      string
		code     int
		class    errdefs.Class
		sentence string
	}{
		"mount":      {func(w *world) { w.store.failMounts = boom }, "true", 128, errdefs.Internal, ""},
		"create":     {func(w *world) { w.runtime.failCreate = errdefs.New(errdefs.Invalid, "unable to find user x") }, "true", 128, errdefs.Invalid, "unable to find user x"},
		"network":    {func(w *world) { w.network.fail = boom }, "true", 128, errdefs.Internal, "failed to set up container networking: boom"},
		"no network": {func(w *world) { w.network.gone = true }, "true", 128, errdefs.NotFound, "failed to set up container networking: network shop not found"},
		"start":      {func(w *world) { w.runtime.failStart = boom }, "true", 128, errdefs.Internal, ""},
		"exec ENOENT": {func(*world) {}, "nosuch", 127, errdefs.Invalid, "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: " +
			`unable to start container process: error during container init: exec: "nosuch": executable file not found in $PATH`},
		"exec EACCES": {func(w *world) { w.runtime.failCreate = &runtime.ExecError{Path: "/f", Errno: unix.EACCES} }, "true", 126, errdefs.Invalid, "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: " +
			`unable to start container process: error during container init: exec: "/f": permission denied`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, auto := range []bool{false, true} {
				w := newWorld(t)
				c.arrange(w)
				id := w.create("ctr", container.HostConfig{AutoRemove: auto, NetworkMode: "shop"}, c.cmd)
				var out bytes.Buffer
				attached := make(chan error, 1)
				armed := make(chan struct{})
				go func() {
					attached <- w.ContainerAttach(context.Background(), id, AttachOptions{Stream: true, Stdout: true, Streams: func(bool) (AttachStreams, error) {
						defer close(armed)
						return AttachStreams{Stdout: &out, Stderr: &out}, nil
					}})
				}()
				<-armed
				err := w.ContainerStart(t.Context(), id)
				if !errdefs.Is(err, c.class) || c.sentence != "" && errdefs.Sentence(err) != c.sentence {
					t.Errorf("%s %q", errdefs.ClassOf(err), errdefs.Sentence(err))
				}
				if err := <-attached; err != nil {
					t.Errorf("attach: %v", err)
				}
				w.clean()
				if auto {
					if _, err := w.ContainerInspect(t.Context(), id, false); !errdefs.Is(err, errdefs.NotFound) {
						t.Errorf("it is still there: %v", err)
					}
					continue
				}
				if s := w.inspect(id).State; s.Status != "created" || s.ExitCode != c.code || s.Error == "" {
					t.Errorf("%+v", s)
				}
				w.reopen()
				if s := w.inspect(id).State; s.Status != "created" || s.ExitCode != c.code || s.Error == "" {
					t.Errorf("after a restart of the agent: %+v", s)
				}
			}
		})
	}
}

func TestANetworkThatIsNotThereFailsTheStart(t *testing.T) {
	for _, without := range []bool{false, true} {
		w := newWorld(t)
		if without {
			w.opts.Network = nil
			w.reopen()
		}
		for _, auto := range []bool{false, true} {
			id := w.create("", container.HostConfig{NetworkMode: "nosuch", AutoRemove: auto}, "true")
			wantErr(t, w.ContainerStart(t.Context(), id), errdefs.NotFound, "failed to set up container networking: network nosuch not found")
			w.clean()
			_, err := w.ContainerInspect(t.Context(), id, false)
			if auto != errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("auto-remove %v: %v", auto, err)
			}
			if auto {
				continue
			}
			if s := w.inspect(id).State; s.Status != "created" || s.ExitCode != 128 || s.Error != "failed to set up container networking: network nosuch not found" {
				t.Errorf("%+v", s)
			}
		}
	}
}

func TestAProgramThatTheKernelRefusesIsTheContainersOwnFailure(t *testing.T) {
	w := newWorld(t)
	w.runtime.failStart = &runtime.ExecError{Path: "/bin/sh", Errno: unix.ENOEXEC}
	for _, tty := range []bool{false, true} {
		r, err := w.ContainerCreate(t.Context(), CreateOptions{Config: &container.Config{Image: "box", Tty: tty}})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		attached := make(chan error, 1)
		armed := make(chan struct{})
		go func() {
			attached <- w.ContainerAttach(context.Background(), r.ID, AttachOptions{Stream: true, Stdout: true, Stderr: true, Streams: func(bool) (AttachStreams, error) {
				defer close(armed)
				return AttachStreams{Stdout: &out, Stderr: &errs}, nil
			}})
		}()
		<-armed
		w.start(r.ID)
		if err := <-attached; err != nil {
			t.Errorf("attach: %v", err)
		}
		if got := w.wait(r.ID, container.WaitConditionNotRunning); got.ExitCode != 255 {
			t.Errorf("%+v", got)
		}
		wantOut, wantErrs, wantLog := "", "exec /bin/sh: exec format error\n", "stderr:exec /bin/sh: exec format error\n"
		if tty {
			wantOut, wantErrs, wantLog = "exec /bin/sh: exec format error\r\n", "", "stdout:exec /bin/sh: exec format error\r\n"
		}
		if out.String() != wantOut || errs.String() != wantErrs {
			t.Errorf("tty %v: %q %q", tty, out.String(), errs.String())
		}
		if got := w.logs(r.ID); len(got) != 1 || got[0] != wantLog {
			t.Errorf("tty %v: logs %q", tty, got)
		}
		if s := w.inspect(r.ID).State; s.Status != "exited" || s.ExitCode != 255 || s.Error != "" {
			t.Errorf("%+v", s)
		}
	}
	w.clean()
}

func TestOnlyContainersThatGoWithTheirProcessAreEphemeral(t *testing.T) {
	w := newWorld(t)
	w.create("stays", container.HostConfig{}, "true")
	id := w.create("goes", container.HostConfig{AutoRemove: true}, "true")
	if got := w.store.ephemeral; len(got) != 1 || got[0] != id {
		t.Errorf("%v, want %s", got, id)
	}
}

func TestHostGateway(t *testing.T) {
	hosts := container.HostConfig{ExtraHosts: []string{"other:10.0.0.1", "host.docker.internal:host-gateway"}}
	for want, o := range map[string]Options{
		"172.17.0.1":      {}, // plain Linux: the bridge's gateway
		"192.168.127.254": {HostGateway: netip.MustParseAddr("192.168.127.254")},
	} {
		w := newWorld(t)
		w.opts.HostGateway = o.HostGateway
		w.reopen()
		id := w.create("", hosts, "true")
		w.start(id)
		w.wait(id, container.WaitConditionNotRunning)
		text, err := os.ReadFile(w.inspect(id).HostsPath)
		if err != nil || !strings.Contains(string(text), "\n10.0.0.1\tother\n"+want+"\thost.docker.internal\n") {
			t.Errorf("%s: %s %v", want, text, err)
		}
	}
	w := newWorld(t)
	id := w.create("before", hosts, "true")
	w.opts.NoHostGateway = true
	w.reopen()
	const sentence = "--add-host host.docker.internal:host-gateway needs the host, which this machine's containers may not reach: " +
		`"dhow machine config host_loopback=true" allows it from the machine's next start`
	_, err := w.ContainerCreate(t.Context(), CreateOptions{Config: &container.Config{Image: "box"}, HostConfig: &hosts})
	wantErr(t, err, errdefs.Invalid, sentence)
	wantErr(t, w.ContainerStart(t.Context(), id), errdefs.Invalid, sentence)
	w.start(w.create("", container.HostConfig{ExtraHosts: []string{"other:10.0.0.1"}}, "true"))
}

func TestFilesThatCannotBeFilledLeaveNoEndpoint(t *testing.T) {
	w := newWorld(t)
	id := w.create("", container.HostConfig{}, "true")
	file := filepath.Join(w.opts.Root, "containers", id, "resolv.conf")
	w.network.onAttach = func(Attach) { // after it was made, before it is filled
		if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
			t.Error(err)
		}
	}
	if err := w.ContainerStart(t.Context(), id); !errors.Is(err, unix.EISDIR) {
		t.Errorf("err = %v", err)
	}
	w.clean()
	w.network.onAttach = nil
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.start(id)
	if got := w.wait(id, container.WaitConditionNotRunning); got.ExitCode != 0 {
		t.Errorf("%+v", got)
	}
	w.clean()
}

func TestNothingStartsOnceTheMachineStops(t *testing.T) {
	w := newWorld(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	w.runtime.onCreate = func() { close(begun); <-goOn }
	half, late := w.create("", container.HostConfig{}, "sleep"), w.create("", container.HostConfig{AutoRemove: true}, "sleep")
	started, stopped := make(chan error, 1), make(chan error, 1)
	go func() { started <- w.ContainerStart(t.Context(), half) }()
	<-begun
	go func() { stopped <- w.Stop(t.Context(), 0) }()
	<-w.stopping
	wantErr(t, w.ContainerStart(t.Context(), late), errdefs.Unavailable, "the machine is being stopped: no container can be started")
	close(goOn)
	for _, c := range []chan error{started, stopped} {
		if err := <-c; err != nil {
			t.Error(err)
		}
	}
	// A start that was under way is waited for, and its container stopped.
	if s := w.inspect(half).State; s.Status != "exited" {
		t.Errorf("%+v", s)
	}
	if s := w.inspect(late).State; s.Status != "created" || s.Error != "" {
		t.Errorf("%+v", s)
	}
	w.clean()
}

func TestAStartThatFailsIsRecordedAfterWhatItBegan(t *testing.T) {
	w := newWorld(t)
	id := w.create("", container.HostConfig{}, "true")
	b, err := w.get(id)
	if err != nil {
		t.Fatal(err)
	}
	l := &launch{e: w.Engine, b: b, rec: b.copy()}
	list := l.steps()
	i := slices.IndexFunc(list, func(s steps.Step) bool { return s.Name == "record the start" })
	tx, err := w.opts.DB.Begin(true) // the disk is slow
	if err != nil {
		t.Fatal(err)
	}
	err = list[i].Do(t.Context())
	undone := make(chan error, 1)
	go func() { undone <- steps.Undo(t.Context(), list[i:i+1]) }()
	select {
	case err := <-undone:
		undone <- err
		t.Error("nobody waits for the record that is under way: it may come last")
	case <-time.After(50 * time.Millisecond):
	}
	if err := errors.Join(err, tx.Rollback(), <-undone); err != nil {
		t.Error(err)
	}
	if text := w.raw(id, nil); !strings.Contains(text, `"Status":"running"`) {
		t.Errorf("it is not written: %s", text)
	}
}
