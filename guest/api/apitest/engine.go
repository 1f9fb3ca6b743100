//go:build linux

package apitest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
)

// Engine is the fake. Its fields may be set before it is used.
type Engine struct {
	// Fail, where it returns an error for a backend method's name, makes that method fail with it.
	Fail func(method string) error
	// Panic is the name of a method that panics.
	Panic string

	mu     sync.Mutex
	serial int
	boxes  []*box
	execs  map[string]*exec
	images []*img
	past   []events.Message
	subs   map[chan events.Message]bool
	// Seen holds the options of the last call of each method.
	Seen map[string]any
}

// New returns an engine that holds the image hello-world:latest and nothing else.
func New() *Engine {
	e := &Engine{execs: map[string]*exec{}, subs: map[chan events.Message]bool{}, Seen: map[string]any{}}
	e.images = []*img{newImage("hello-world:latest", 13336)}
	return e
}

// enter is called first by each method: it records the call and injects faults.
func (e *Engine) enter(method string, options any) error {
	e.mu.Lock()
	e.Seen[method] = options
	fail, boom := e.Fail, e.Panic
	e.mu.Unlock()
	if boom == method {
		panic("told to panic in " + method)
	}
	if fail != nil {
		return fail(method)
	}
	return nil
}

// Last returns the options of method's last call.
func (e *Engine) Last(method string) any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Seen[method]
}

func (e *Engine) newID(kind string) string {
	e.serial++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, e.serial))
	return hex.EncodeToString(sum[:])
}

// box is a container.
type box struct {
	id, name string
	o        engine.CreateOptions
	created  time.Time
	state    container.ContainerState
	code     int
	logs     []engine.LogMessage
	sinks    map[chan engine.LogMessage]bool // live output
	stdinR   *io.PipeReader
	stdinW   *io.PipeWriter
	kill     chan int
	done     chan struct{} // closed at the end of the running life; new at each start
	exited   []chan engine.WaitResult
	removed  []chan engine.WaitResult
	size     [2]uint
}

func (e *Engine) find(id string) (*box, error) {
	for _, b := range e.boxes {
		if b.name == strings.TrimPrefix(id, "/") || (len(id) > 0 && strings.HasPrefix(b.id, id)) {
			return b, nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "No such container: %s", id)
}

// ContainerCreate implements api.Containers.
func (e *Engine) ContainerCreate(_ context.Context, o engine.CreateOptions) (container.CreateResponse, error) {
	if err := e.enter("ContainerCreate", o); err != nil {
		return container.CreateResponse{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.findImage(o.Config.Image); err != nil {
		return container.CreateResponse{}, err
	}
	host := *o.HostConfig // what was recorded as seen stays as it was
	if o.HostConfig = &host; host.LogConfig.Type == "" {
		host.LogConfig.Type = "json-file"
	}
	id := e.newID("container")
	if o.Name == "" {
		o.Name = "box_" + id[:6]
	}
	if b, err := e.find(o.Name); err == nil {
		return container.CreateResponse{}, errdefs.New(errdefs.Conflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+o.Name, b.id)
	}
	b := &box{id: id, name: o.Name, o: o, created: time.Unix(1700000000, 0), state: container.StateCreated, sinks: map[chan engine.LogMessage]bool{}}
	b.stdinR, b.stdinW = io.Pipe()
	e.boxes = append(e.boxes, b)
	e.emit(events.ContainerEventType, events.ActionCreate, id, map[string]string{"image": o.Config.Image, "name": b.name})
	return container.CreateResponse{ID: id}, nil
}

// ContainerStart implements api.Containers.
func (e *Engine) ContainerStart(_ context.Context, id string) error {
	if err := e.enter("ContainerStart", id); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return err
	}
	if b.state == container.StateRunning {
		return errdefs.New(errdefs.NotModified, "container already started")
	}
	args := slices.Concat(b.o.Config.Entrypoint, b.o.Config.Cmd)
	run := programs[args[0]]
	if run == nil {
		return errdefs.New(errdefs.Invalid, "failed to create task for container: exec: %q: executable file not found in $PATH", args[0])
	}
	b.state, b.code, b.kill, b.done = container.StateRunning, 0, make(chan int, 1), make(chan struct{})
	e.emit(events.ContainerEventType, events.ActionStart, b.id, map[string]string{"image": b.o.Config.Image, "name": b.name})
	p := process{args: args[1:], stdin: b.stdinR, stdout: sink{e, b, "stdout"}, stderr: sink{e, b, "stderr"}, kill: b.kill}
	if !b.o.Config.OpenStdin {
		p.stdin = strings.NewReader("")
	}
	go func() { e.ended(b, run(p)) }()
	return nil
}

func (e *Engine) ended(b *box, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b.state, b.code = container.StateExited, code
	_ = b.stdinR.Close()
	b.stdinR, b.stdinW = io.Pipe()
	close(b.done)
	for s := range b.sinks {
		close(s)
	}
	b.sinks = map[chan engine.LogMessage]bool{}
	for _, w := range b.exited {
		w <- engine.WaitResult{ExitCode: code}
	}
	b.exited = nil
	e.emit(events.ContainerEventType, events.ActionDie, b.id, map[string]string{"image": b.o.Config.Image, "name": b.name, "exitCode": fmt.Sprint(code)})
	if b.o.HostConfig.AutoRemove {
		e.drop(b)
	}
}

func (e *Engine) drop(b *box) {
	e.boxes = slices.DeleteFunc(e.boxes, func(o *box) bool { return o == b })
	for _, w := range b.removed {
		w <- engine.WaitResult{ExitCode: b.code}
	}
	b.removed = nil
	e.emit(events.ContainerEventType, events.ActionDestroy, b.id, map[string]string{"image": b.o.Config.Image, "name": b.name})
}

// sink is a program's output: to the log and to who is attached.
type sink struct {
	e      *Engine
	b      *box
	stream string
}

func (s sink) Write(p []byte) (int, error) {
	m := engine.LogMessage{Stream: s.stream, Time: time.Unix(1700000001, 5), Line: slices.Clone(p)}
	s.e.mu.Lock()
	s.b.logs = append(s.b.logs, m)
	to := make([]chan engine.LogMessage, 0, len(s.b.sinks))
	for c := range s.b.sinks {
		to = append(to, c)
	}
	s.e.mu.Unlock()
	for _, c := range to {
		c <- m // closed only by ended, which runs after the program
	}
	return len(p), nil
}

// stop ends a running container with a signal's exit code and waits for it.
func (e *Engine) stop(id string, code int) error {
	e.mu.Lock()
	b, err := e.find(id)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	if b.state != container.StateRunning {
		e.mu.Unlock()
		return errdefs.New(errdefs.NotModified, "container already stopped")
	}
	select {
	case b.kill <- code:
	default:
	}
	done := b.done
	e.mu.Unlock()
	<-done
	return nil
}

// ContainerStop implements api.Containers.
func (e *Engine) ContainerStop(_ context.Context, id string, o engine.StopOptions) error {
	if err := e.enter("ContainerStop", o); err != nil {
		return err
	}
	return e.stop(id, 143)
}

// ContainerRestart implements api.Containers.
func (e *Engine) ContainerRestart(ctx context.Context, id string, o engine.StopOptions) error {
	if err := e.enter("ContainerRestart", o); err != nil {
		return err
	}
	if err := e.stop(id, 143); err != nil && !errdefs.Is(err, errdefs.NotModified) {
		return err
	}
	return e.ContainerStart(ctx, id)
}

// ContainerKill implements api.Containers.
func (e *Engine) ContainerKill(_ context.Context, id, signal string) error {
	if err := e.enter("ContainerKill", signal); err != nil {
		return err
	}
	err := e.stop(id, 137)
	if errdefs.Is(err, errdefs.NotModified) {
		return errdefs.New(errdefs.Conflict, "cannot kill container: %s: container %s is not running", id, id)
	}
	return err
}

// setState moves a container from one state to another.
func (e *Engine) setState(id string, from, to container.ContainerState) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return err
	}
	if b.state != from {
		return errdefs.New(errdefs.Conflict, "container %s is %s, not %s", id, b.state, from)
	}
	b.state = to
	return nil
}

// ContainerPause implements api.Containers.
func (e *Engine) ContainerPause(_ context.Context, id string) error {
	if err := e.enter("ContainerPause", id); err != nil {
		return err
	}
	return e.setState(id, container.StateRunning, container.StatePaused)
}

// ContainerUnpause implements api.Containers.
func (e *Engine) ContainerUnpause(_ context.Context, id string) error {
	if err := e.enter("ContainerUnpause", id); err != nil {
		return err
	}
	return e.setState(id, container.StatePaused, container.StateRunning)
}

// ContainerRename implements api.Containers.
func (e *Engine) ContainerRename(_ context.Context, id, name string) error {
	if err := e.enter("ContainerRename", name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err == nil {
		b.name = name
	}
	return err
}

// ContainerRemove implements api.Containers.
func (e *Engine) ContainerRemove(_ context.Context, id string, o engine.RemoveOptions) error {
	if err := e.enter("ContainerRemove", o); err != nil {
		return err
	}
	if o.Force {
		if err := e.stop(id, 137); err != nil && !errdefs.Is(err, errdefs.NotModified) {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return err
	}
	if b.state == container.StateRunning {
		return errdefs.New(errdefs.Conflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+b.name)
	}
	e.drop(b)
	return nil
}

// ContainerPrune implements api.Containers.
func (e *Engine) ContainerPrune(_ context.Context, f engine.Filters) (r container.PruneReport, err error) {
	if err := e.enter("ContainerPrune", f); err != nil {
		return r, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range slices.Clone(e.boxes) {
		if b.state != container.StateRunning && b.state != container.StatePaused {
			r.ContainersDeleted = append(r.ContainersDeleted, b.id)
			e.drop(b)
		}
	}
	return r, nil
}

// ContainerList implements api.Containers. It knows no filters.
func (e *Engine) ContainerList(_ context.Context, o engine.ListOptions) (list []container.Summary, err error) {
	if err := e.enter("ContainerList", o); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range slices.Backward(e.boxes) {
		if !o.All && b.state != container.StateRunning {
			continue
		}
		list = append(list, container.Summary{
			ID: b.id, Names: []string{"/" + b.name}, Image: b.o.Config.Image, Command: strings.Join(b.o.Config.Cmd, " "),
			Created: b.created.Unix(), State: b.state, Status: "Up 2 minutes",
		})
		if len(list) == o.Limit {
			break
		}
	}
	return list, nil
}

// ContainerInspect implements api.Containers.
func (e *Engine) ContainerInspect(_ context.Context, id string, size bool) (r container.InspectResponse, err error) {
	if err := e.enter("ContainerInspect", size); err != nil {
		return r, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err != nil {
		return r, err
	}
	return container.InspectResponse{
		ID: b.id, Name: "/" + b.name, Created: b.created.UTC().Format(time.RFC3339Nano), Path: b.o.Config.Cmd[0], Args: b.o.Config.Cmd[1:],
		State:  &container.State{Status: b.state, Running: b.state == container.StateRunning, ExitCode: b.code},
		Config: b.o.Config, HostConfig: b.o.HostConfig, Driver: "overlayfs", Platform: "linux",
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: "overlayfs"}}},
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
			"bridge": {EndpointID: "ep", Gateway: mustAddr("172.17.0.1"), IPAddress: mustAddr("172.17.0.2"), IPPrefixLen: 16, MacAddress: network.HardwareAddr{2, 0x42, 172, 17, 0, 2}},
			"web":    {Aliases: []string{"db"}},
		}},
	}, nil
}

// ContainerTop implements api.Containers.
func (e *Engine) ContainerTop(_ context.Context, id string, args []string) (container.TopResponse, error) {
	if err := e.enter("ContainerTop", args); err != nil {
		return container.TopResponse{}, err
	}
	return container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"1", "sleep"}}}, nil
}

// ContainerStats implements api.Containers: three samples when streaming.
func (e *Engine) ContainerStats(_ context.Context, id string, stream, oneShot bool, emit func(container.StatsResponse) error) error {
	if err := e.enter("ContainerStats", [2]bool{stream, oneShot}); err != nil {
		return err
	}
	e.mu.Lock()
	b, err := e.find(id)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	for range 3 {
		if err := emit(container.StatsResponse{ID: b.id, Name: "/" + b.name}); err != nil || !stream {
			return err
		}
	}
	return nil
}

// ContainerResize implements api.Containers.
func (e *Engine) ContainerResize(_ context.Context, id string, height, width uint) error {
	if err := e.enter("ContainerResize", [2]uint{height, width}); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := e.find(id)
	if err == nil {
		b.size = [2]uint{height, width}
	}
	return err
}
