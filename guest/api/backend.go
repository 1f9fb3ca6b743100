//go:build linux

package api

import (
	"context"
	"io"

	"dhow/guest/engine"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// Containers is what the /containers routes need. Every id is an ID, a unique
// prefix of one, or a name. Errors carry an errdefs class and docker's sentence.
type Containers interface {
	ContainerCreate(ctx context.Context, o engine.CreateOptions) (container.CreateResponse, error)
	ContainerStart(ctx context.Context, id string) error // NotModified if it runs
	ContainerStop(ctx context.Context, id string, o engine.StopOptions) error
	ContainerRestart(ctx context.Context, id string, o engine.StopOptions) error
	ContainerKill(ctx context.Context, id, signal string) error
	ContainerPause(ctx context.Context, id string) error
	ContainerUnpause(ctx context.Context, id string) error
	ContainerRename(ctx context.Context, id, name string) error
	ContainerRemove(ctx context.Context, id string, o engine.RemoveOptions) error
	ContainerPrune(ctx context.Context, f engine.Filters) (container.PruneReport, error)
	ContainerList(ctx context.Context, o engine.ListOptions) ([]container.Summary, error)
	ContainerInspect(ctx context.Context, id string, size bool) (container.InspectResponse, error)
	ContainerTop(ctx context.Context, id string, psArgs []string) (container.TopResponse, error)
	// ContainerStats calls emit once, or every second until ctx ends or the container stops.
	ContainerStats(ctx context.Context, id string, stream, oneShot bool, emit func(container.StatsResponse) error) error
	// ContainerAttach blocks until the streams end.
	ContainerAttach(ctx context.Context, id string, o engine.AttachOptions) error
	ContainerResize(ctx context.Context, id string, height, width uint) error
	// ContainerWait returns at once with a channel that delivers one result; the
	// container is looked up and the condition armed before it returns, so that a
	// start after it is never missed.
	ContainerWait(ctx context.Context, id string, cond container.WaitCondition) (<-chan engine.WaitResult, error)
	// ContainerLogs calls emit for each record until the log ends, or, following, until the container stops or ctx ends.
	// start is called once before the first emit with whether the container has a terminal (its output is then not multiplexed).
	ContainerLogs(ctx context.Context, id string, o engine.LogOptions, start func(terminal bool) error, emit func(engine.LogMessage) error) error
}

// Execs is what the /exec routes need.
type Execs interface {
	ExecCreate(ctx context.Context, id string, o engine.ExecOptions) (execID string, err error)
	ExecStart(ctx context.Context, execID string, o engine.ExecStartOptions) error // blocks until the end unless detached
	ExecInspect(ctx context.Context, execID string) (container.ExecInspectResponse, error)
	ExecResize(ctx context.Context, execID string, height, width uint) error
}

// Images is what the /images routes need.
type Images interface {
	ImagePull(ctx context.Context, o engine.PullOptions) (engine.PullResult, error)
	ImageLoad(ctx context.Context, r io.Reader, progress func(engine.Progress)) (loaded []string, err error) // "Loaded image: …" lines' names
	ImageList(ctx context.Context, all bool, f engine.Filters) ([]image.Summary, error)
	ImageInspect(ctx context.Context, nameOrID string) (image.InspectResponse, error)
	ImageHistory(ctx context.Context, nameOrID string) ([]image.HistoryResponseItem, error)
	ImageTag(ctx context.Context, nameOrID, repo, tag string) error
	ImageRemove(ctx context.Context, nameOrID string, force, noPrune bool) ([]image.DeleteResponse, error)
}

// Networks is what the /networks routes need in the first form: the built-in
// networks are read-only.
type Networks interface {
	NetworkList(ctx context.Context, f engine.Filters) ([]network.Inspect, error)
	NetworkInspect(ctx context.Context, nameOrID string) (network.Inspect, error)
}

// System is what /info, /version, /events, /auth and /system/df need.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	// Events calls emit for each event, past ones first, until ctx ends or Until is reached.
	Events(ctx context.Context, o engine.EventOptions, emit func(events.Message) error) error
	Auth(ctx context.Context, a registry.AuthConfig) (status, identityToken string, err error)
	DiskUsage(ctx context.Context) (system.DiskUsage, error)
}
