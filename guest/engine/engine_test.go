//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"dhow/internal/errdefs"
)

func (w *world) create(name string, h container.HostConfig, cmd ...string) string {
	w.t.Helper()
	r, err := w.ContainerCreate(w.t.Context(), CreateOptions{Name: name, Config: &container.Config{Image: "box", Cmd: cmd}, HostConfig: &h})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.ID
}

func (w *world) start(id string) {
	w.t.Helper()
	if err := w.ContainerStart(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wait(id string, c container.WaitCondition) WaitResult {
	w.t.Helper()
	ch, err := w.ContainerWait(w.t.Context(), id, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return <-ch
}

func (w *world) inspect(id string) container.InspectResponse {
	w.t.Helper()
	r, err := w.ContainerInspect(w.t.Context(), id, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) logs(id string) (lines []string) {
	w.t.Helper()
	err := w.ContainerLogs(w.t.Context(), id, LogOptions{Stdout: true, Stderr: true, Tail: -1}, func(bool) error { return nil },
		func(m LogMessage) error { lines = append(lines, m.Stream+":"+string(m.Line)); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return lines
}

func wantErr(t *testing.T, err error, class errdefs.Class, sentence string) {
	t.Helper()
	if !errdefs.Is(err, class) || errdefs.Sentence(err) != sentence {
		t.Errorf("got %s %q, want %s %q", errdefs.ClassOf(err), errdefs.Sentence(err), class, sentence)
	}
}

func TestALife(t *testing.T) {
	w := newWorld(t)
	sub := w.opts.Events.Subscribe(time.Time{})
	defer sub.Close()
	id := w.create("web", container.HostConfig{}, "hello")
	if s := w.inspect("web").State; s.Status != "created" || s.Running || s.StartedAt != "0001-01-01T00:00:00Z" {
		t.Errorf("created: %+v", s)
	}
	exit, err := w.ContainerWait(t.Context(), id, container.WaitConditionNextExit)
	if err != nil {
		t.Fatal(err)
	}
	w.start("web")
	if r := <-exit; r.ExitCode != 3 || r.Err != nil {
		t.Errorf("exit %+v", r)
	}
	in := w.inspect(id[:12])
	if s := in.State; s.Status != "exited" || s.ExitCode != 3 || s.Pid != 0 || s.FinishedAt < s.StartedAt {
		t.Errorf("exited: %+v", s)
	}
	lines := w.logs(id)
	slices.Sort(lines)
	if fmt.Sprint(lines) != fmt.Sprint([]string{"stderr:world\n", "stdout:hello\n"}) {
		t.Errorf("logs %q", lines)
	}
	w.clean()
	if err := w.ContainerRemove(t.Context(), "web", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = w.ContainerInspect(t.Context(), id, false)
	wantErr(t, err, errdefs.NotFound, "No such container: "+id)
	if got := actions(sub); fmt.Sprint(got) != "[create start die destroy]" {
		t.Errorf("events %v", got)
	}
	if _, err := os.Stat(w.opts.Root + "/containers/" + id); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if len(w.store.containers) != 0 {
		t.Error("the snapshot is still there")
	}
	if recs, bad, err := readRecords(t.Context(), w.opts.DB); err != nil || len(recs)+len(bad) != 0 {
		t.Errorf("records %v, %v", recs, err)
	}
}

func TestSentences(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.create("web", container.HostConfig{}, "sleep")
	_, err := w.ContainerCreate(ctx, CreateOptions{Name: "web", Config: &container.Config{Image: "box"}})
	wantErr(t, err, errdefs.Conflict, `Conflict. The container name "/web" is already in use by container "`+id+`". You have to remove (or rename) that container to be able to reuse that name.`)
	_, err = w.ContainerCreate(ctx, CreateOptions{Name: "-", Config: &container.Config{Image: "box"}})
	wantErr(t, err, errdefs.Invalid, "Invalid container name (-), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
	_, err = w.ContainerCreate(ctx, CreateOptions{Config: &container.Config{Image: "nope"}})
	wantErr(t, err, errdefs.NotFound, "No such image: nope")
	wantErr(t, w.ContainerStart(ctx, "nope"), errdefs.NotFound, "No such container: nope")
	wantErr(t, w.ContainerKill(ctx, "web", ""), errdefs.Conflict, "cannot kill container: web: container "+id+" is not running")
	wantErr(t, w.ContainerStop(ctx, "web", StopOptions{}), errdefs.NotModified, "Container is already stopped")
	wantErr(t, w.ContainerPause(ctx, "web"), errdefs.Conflict, "container "+id+" is not running")
	wantErr(t, w.ContainerUnpause(ctx, "web"), errdefs.Conflict, "Container "+id+" is not paused")
	_, err = w.ExecCreate(ctx, "web", ExecOptions{container.ExecCreateRequest{Cmd: []string{"x"}}})
	wantErr(t, err, errdefs.Conflict, "container "+id+" is not running")
	wantErr(t, w.ExecStart(ctx, "nope", ExecStartOptions{}), errdefs.NotFound, "No such exec instance: nope")
	w.start("web")
	wantErr(t, w.ContainerStart(ctx, "web"), errdefs.NotModified, "Container is already started")
	wantErr(t, w.ContainerRemove(ctx, "web", RemoveOptions{}), errdefs.Conflict, `cannot remove container "/web": container is running: stop the container before removing or force remove`)
	if err := w.ContainerPause(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.ContainerPause(ctx, "web"), errdefs.Conflict, "container "+id+" is already paused")
	wantErr(t, w.ContainerStart(ctx, "web"), errdefs.Conflict, "cannot start a paused container, try unpause instead")
	wantErr(t, w.ContainerRemove(ctx, "web", RemoveOptions{}), errdefs.Conflict, `cannot remove container "/web": container is paused and must be unpaused first`)
	_, err = w.ExecCreate(ctx, "web", ExecOptions{container.ExecCreateRequest{Cmd: []string{"x"}}})
	wantErr(t, err, errdefs.Conflict, "Container web is paused, unpause the container before exec")
	wantErr(t, w.ContainerAttach(ctx, "web", AttachOptions{}), errdefs.Conflict, "container web is paused, unpause the container before attach")
	wantErr(t, w.ContainerRename(ctx, "web", "/web"), errdefs.Invalid, "Renaming a container with the same name as its current name")
	if err := w.ContainerRemove(ctx, "web", RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	w.clean()
}

// A start that fails at any step leaves nothing but the record of the failure.
func TestAutoRemoveEndsBeforeTheWaitForIt(t *testing.T) {
	w := newWorld(t)
	sub := w.opts.Events.Subscribe(time.Time{})
	defer sub.Close()
	for range 20 {
		id := w.create("", container.HostConfig{AutoRemove: true}, "hello")
		removed, err := w.ContainerWait(t.Context(), id, container.WaitConditionRemoved)
		if err != nil {
			t.Fatal(err)
		}
		w.start(id)
		if r := <-removed; r.ExitCode != 3 || r.Err != nil {
			t.Errorf("%+v", r)
		}
		if _, err := w.ContainerInspect(t.Context(), id, false); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("it is still there: %v", err)
		}
		w.clean()
	}
	if got := actions(sub)[:4]; fmt.Sprint(got) != "[create start die destroy]" {
		t.Errorf("events %v", got)
	}
}

func TestWaitConditions(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{}, "sleep")
	if r := w.wait(id, container.WaitConditionNotRunning); r.ExitCode != 0 {
		t.Errorf("of one that never ran: %+v", r)
	}
	w.start(id)
	arm := func(c container.WaitCondition) <-chan WaitResult {
		ch, err := w.ContainerWait(t.Context(), id, c)
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	stopped, next, removed := arm(""), arm(container.WaitConditionNextExit), arm(container.WaitConditionRemoved)
	ctx, cancel := context.WithCancel(t.Context())
	gone, err := w.ContainerWait(ctx, id, "")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if r := <-gone; !errors.Is(r.Err, context.Canceled) {
		t.Errorf("a waiter that went away: %+v", r)
	}
	if err := w.ContainerStop(t.Context(), id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if a, b := <-stopped, <-next; a.ExitCode != 143 || b.ExitCode != 143 {
		t.Errorf("%+v %+v", a, b)
	}
	select {
	case r := <-removed:
		t.Errorf("removed too early: %+v", r)
	default:
	}
	if err := w.ContainerRemove(t.Context(), id, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := <-removed; r.ExitCode != 143 {
		t.Errorf("%+v", r)
	}
	if _, err := w.ContainerWait(t.Context(), id, "soon"); !errdefs.Is(err, errdefs.Invalid) {
		t.Error(err)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{}, "deaf")
	w.start(id)
	sub := w.opts.Events.Subscribe(time.Time{})
	defer sub.Close()
	zero := 0
	if err := w.ContainerStop(t.Context(), id, StopOptions{Timeout: &zero, Signal: "INT"}); err != nil {
		t.Fatal(err)
	}
	if s := w.inspect(id).State; s.ExitCode != 137 || s.Status != "exited" {
		t.Errorf("%+v", s)
	}
	if got := fmt.Sprint(actions(sub)); got != "[kill die stop]" && got != "[kill die stop kill]" {
		t.Errorf("events %v", got)
	}
}

func TestRestartKeepsAContainerThatGoesWithItsProcess(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{AutoRemove: true}, "sleep")
	w.start(id)
	if err := w.ContainerRestart(t.Context(), id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := w.inspect(id).State; s.Status != "running" {
		t.Errorf("%+v", s)
	}
}

func TestAttachBeforeStartSeesAllAndFeedsInput(t *testing.T) {
	w := newWorld(t)
	r, err := w.ContainerCreate(t.Context(), CreateOptions{Config: &container.Config{Image: "box", Cmd: []string{"cat"}, OpenStdin: true, StdinOnce: true}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done, armed := make(chan error, 1), make(chan struct{})
	go func() {
		done <- w.ContainerAttach(context.Background(), r.ID, AttachOptions{Stream: true, Stdin: true, Stdout: true, Streams: func(bool) (AttachStreams, error) {
			defer close(armed)
			return AttachStreams{Stdin: strings.NewReader("typed before the start"), Stdout: &out}, nil
		}})
	}()
	<-armed
	w.start(r.ID)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != "typed before the start" {
		t.Errorf("%q", out.String())
	}
	if s := w.inspect(r.ID).State; s.Running {
		t.Error("the attachment ended before the container")
	}
}

func TestAnExecThatCannotBeRunIsAConflictOnlyWhereTheContainerIsToBlame(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{}, "sleep")
	w.start(id)
	start := func() error {
		t.Helper()
		x, err := w.ExecCreate(t.Context(), id, ExecOptions{container.ExecCreateRequest{Cmd: []string{"true"}}})
		if err != nil {
			t.Fatal(err)
		}
		return w.ExecStart(t.Context(), x, ExecStartOptions{Detach: true})
	}
	const prefix = "OCI runtime exec failed: exec failed: unable to start container process: "
	w.runtime.failExec = func() error { return errdefs.New(errdefs.Conflict, "two of a kind") }
	wantErr(t, start(), errdefs.Internal, prefix+"two of a kind")
	w.runtime.failExec = func() error { // paused between the look and the exec
		if err := w.ContainerPause(t.Context(), id); err != nil {
			t.Error(err)
		}
		return errdefs.New(errdefs.Conflict, "paused")
	}
	wantErr(t, start(), errdefs.Conflict, "Container "+id+" is paused, unpause the container before exec")
	if err := w.ContainerUnpause(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{}, "sleep")
	w.start(id)
	ctx := t.Context()
	run := func(stdin string, cmd ...string) (string, container.ExecInspectResponse, error) {
		t.Helper()
		x, err := w.ExecCreate(ctx, "ctr", ExecOptions{container.ExecCreateRequest{Cmd: cmd, AttachStdin: stdin != "", AttachStdout: true, AttachStderr: true}})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var out bytes.Buffer
		err = w.ExecStart(ctx, x, ExecStartOptions{Streams: func(bool) (AttachStreams, error) {
			mu.Lock()
			defer mu.Unlock()
			return AttachStreams{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out}, nil
		}})
		in, ierr := w.ExecInspect(ctx, x)
		if ierr != nil {
			t.Fatal(ierr)
		}
		if again := w.ExecStart(ctx, x, ExecStartOptions{}); !errdefs.Is(again, errdefs.Conflict) {
			t.Errorf("a second start: %v", again)
		}
		return out.String(), in, err
	}
	if out, in, err := run("", "hello"); err != nil || len(out) != 12 || in.Running || in.ExitCode == nil || *in.ExitCode != 3 {
		t.Errorf("%q %v %+v", out, err, in)
	}
	if out, _, err := run("input", "cat"); err != nil || out != "input" {
		t.Errorf("%q %v", out, err)
	}
	_, in, err := run("", "nosuch")
	wantErr(t, err, errdefs.Invalid, `OCI runtime exec failed: exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`)
	if in.ExitCode == nil || *in.ExitCode != 127 {
		t.Errorf("%+v", in)
	}
	if ids := w.inspect(id).ExecIDs; len(ids) != 0 {
		t.Errorf("execs that ended are still listed: %v", ids)
	}
}

func TestANewLifeOfTheAgent(t *testing.T) {
	w := newWorld(t)
	ran := w.create("ran", container.HostConfig{}, "sleep")
	old := w.create("old", container.HostConfig{}, "sleep")
	idle := w.create("idle", container.HostConfig{}, "true")
	auto := w.create("auto", container.HostConfig{AutoRemove: true}, "sleep")
	w.start(ran)
	w.start(old)
	w.start(auto)
	before := w.Engine
	// It ran before the machine started: it ended with the machine's former life.
	b, err := w.get(old)
	if err != nil {
		t.Fatal(err)
	}
	r := b.copy()
	r.State.StartedAt = w.opts.BootTime.Add(-time.Hour)
	if err := putRecord(t.Context(), w.opts.DB, &r); err != nil {
		t.Fatal(err)
	}
	w.store.set("stray", true)
	if err := os.Mkdir(w.opts.Root+"/containers/stray", 0o700); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	if s := w.inspect("ran").State; s.Status != "exited" || s.ExitCode != 255 {
		t.Errorf("ran: %+v", s)
	}
	if s := w.inspect("old").State; s.Status != "exited" || s.FinishedAt != w.opts.BootTime.UTC().Format(time.RFC3339Nano) {
		t.Errorf("old: %+v, boot at %v", s, w.opts.BootTime)
	}
	if s := w.inspect("idle").State; s.Status != "created" {
		t.Errorf("idle: %+v", s)
	}
	if _, err := w.ContainerInspect(t.Context(), auto, false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("auto: %v", err)
	}
	keys, _ := w.store.Containers(t.Context())
	if len(keys) != 3 || slices.Contains(keys, "stray") || !slices.Contains(keys, idle) {
		t.Errorf("snapshots %v", keys)
	}
	if _, err := os.Stat(w.opts.Root + "/containers/stray"); !os.IsNotExist(err) {
		t.Error("the stray directory is still there")
	}
	// What the former life still runs must not change what the new one knows.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := errors.Join(before.Stop(ctx, 0), before.Close(ctx)); err != nil {
		t.Error(err)
	}
}

func TestPolicyBringsBack(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}}, "false")
	w.start(id)
	deadline := time.Now().Add(5 * time.Second)
	for w.inspect(id).RestartCount < 2 || w.inspect(id).State.Running {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", w.inspect(id).State)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if in := w.inspect(id); in.State.Status != "exited" || in.State.ExitCode != 1 || in.RestartCount != 2 {
		t.Errorf("%+v", in.State)
	}
	always := w.create("aaa", container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}, "false")
	w.start(always)
	for w.inspect(always).State.Status != container.StateRestarting {
		time.Sleep(time.Millisecond)
	}
	if err := w.ContainerStop(t.Context(), always, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := w.inspect(always).State; s.Status != "exited" {
		t.Errorf("stopped while it waited for its restart: %+v", s)
	}
	if err := w.ContainerRemove(t.Context(), always, RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	w := newWorld(t)
	a := w.create("alpha", container.HostConfig{}, "sleep")
	b := w.create("beta", container.HostConfig{}, "hello")
	c := w.create("gamma", container.HostConfig{}, "sleep")
	w.start(a)
	w.start(b)
	w.wait(b, "")
	for _, q := range []struct {
		name, want string
		o          ListOptions
	}{
		{"running", "alpha", ListOptions{}},
		{"all", "gamma beta alpha", ListOptions{All: true}},
		{"last", "gamma beta", ListOptions{All: true, Limit: 2}},
		{"by name", "beta", ListOptions{All: true, Filters: Filters{"name": {"^be": true}}}},
		{"by id", "gamma", ListOptions{All: true, Filters: Filters{"id": {c[:12]: true}}}},
		{"by status", "gamma", ListOptions{Filters: Filters{"status": {"created": true}}}},
		{"exited", "beta", ListOptions{All: true, Filters: Filters{"exited": {"3": true}}}},
		{"before", "alpha", ListOptions{All: true, Filters: Filters{"before": {"beta": true}}}},
		{"since", "gamma", ListOptions{All: true, Filters: Filters{"since": {"beta": true}}}},
		{"ancestor", "gamma beta alpha", ListOptions{All: true, Filters: Filters{"ancestor": {"box": true}}}},
		{"unknown ancestor", "", ListOptions{All: true, Filters: Filters{"ancestor": {"nope": true}}}},
		{"network", "alpha", ListOptions{Filters: Filters{"network": {"bridge": true}}}},
		{"network's ID", "alpha", ListOptions{Filters: Filters{"network": {"net1": true}}}},
		{"health", "alpha", ListOptions{Filters: Filters{"health": {"none": true}}}},
		{"volume", "", ListOptions{All: true, Filters: Filters{"volume": {"x": true}}}},
	} {
		list, err := w.ContainerList(t.Context(), q.o)
		if err != nil {
			t.Errorf("%s: %v", q.name, err)
		}
		var names []string
		for _, s := range list {
			names = append(names, strings.TrimPrefix(s.Names[0], "/"))
		}
		if got := strings.Join(names, " "); got != q.want {
			t.Errorf("%s: %q, want %q", q.name, got, q.want)
		}
	}
	list, err := w.ContainerList(t.Context(), ListOptions{Size: true})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	s := list[0]
	if s.SizeRw != 10 || s.SizeRootFs != 1010 || s.Image != "box" || s.State != "running" || !strings.HasPrefix(s.Status, "Up ") ||
		s.NetworkSettings.Networks["bridge"].IPAddress.String() != "172.17.0.2" || s.Command != "sleep" {
		t.Errorf("%+v", s)
	}
	_, err = w.ContainerList(t.Context(), ListOptions{Filters: Filters{"colour": {"red": true}}})
	wantErr(t, err, errdefs.Invalid, "invalid filter 'colour'")
}

func TestFilesOfAContainer(t *testing.T) {
	w := newWorld(t)
	id := w.create("ctr", container.HostConfig{ExtraHosts: []string{"db:10.0.0.9", "host.docker.internal:host-gateway"}}, "sleep")
	w.start(id)
	in := w.inspect(id)
	hosts, err := os.ReadFile(in.HostsPath)
	if err != nil {
		t.Fatal(err)
	}
	if want := hostsHead + "10.0.0.9\tdb\n172.17.0.1\thost.docker.internal\n172.17.0.2\t" + id[:12] + "\n"; string(hosts) != want {
		t.Errorf("hosts\n%s", hosts)
	}
	if name, err := os.ReadFile(in.HostnamePath); err != nil || string(name) != id[:12]+"\n" {
		t.Errorf("hostname %q, %v", name, err)
	}
	if resolv, err := os.ReadFile(in.ResolvConfPath); err != nil || string(resolv) != "nameserver 192.168.127.1\n" {
		t.Errorf("resolv.conf %q, %v", resolv, err)
	}
}

func TestRename(t *testing.T) {
	w := newWorld(t)
	id := w.create("one", container.HostConfig{}, "true")
	w.create("two", container.HostConfig{}, "true")
	if err := w.ContainerRename(t.Context(), "one", "two"); !errdefs.Is(err, errdefs.Conflict) || !strings.HasPrefix(errdefs.Sentence(err), "Error when allocating new name: Conflict. ") {
		t.Error(err)
	}
	if err := w.ContainerRename(t.Context(), "one", "three"); err != nil {
		t.Fatal(err)
	}
	w.create("one", container.HostConfig{}, "true")
	w.reopen()
	if got := w.inspect("three").ID; got != id {
		t.Errorf("three is %s", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			r, err := w.ContainerCreate(context.Background(), CreateOptions{Config: &container.Config{Image: "box", Cmd: []string{"hello"}}, HostConfig: &container.HostConfig{AutoRemove: true}})
			if err != nil {
				t.Error(err)
				return
			}
			ch, err := w.ContainerWait(context.Background(), r.ID, container.WaitConditionRemoved)
			if err != nil {
				t.Error(err)
				return
			}
			if err := w.ContainerStart(context.Background(), r.ID); err != nil {
				t.Error(err)
			}
			if res := <-ch; res.ExitCode != 3 {
				t.Errorf("%+v", res)
			}
		})
	}
	wg.Wait()
	if list, err := w.ContainerList(t.Context(), ListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	w.clean()
}
