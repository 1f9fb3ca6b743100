//go:build linux

package engine

import (
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Filters are the API's filters: name → set of values.
type Filters map[string]map[string]bool

// CreateOptions is what POST /containers/create asks for. Name is "" for a
// generated one; Platform is nil for the machine's own.
type CreateOptions struct {
	Name       string
	Config     *container.Config
	HostConfig *container.HostConfig
	Networking *network.NetworkingConfig
	Platform   *ocispec.Platform
}

// AttachOptions is what an attach asks for. Streams is called once the
// container and its state are checked and just before the first byte, so that
// errors before it can still be answered as HTTP errors: it gives the client's
// input and the (already multiplexed, or raw for a terminal) output writers.
type AttachOptions struct {
	Logs, Stream          bool
	Stdin, Stdout, Stderr bool
	DetachKeys            string // e.g. "ctrl-p,ctrl-q"; "" = the default
	Streams               func(terminal bool) (AttachStreams, error)
}

// AttachStreams is the client's side of an attach or exec. Stdin ends (EOF)
// when the client half-closes or goes away. Closed is closed when the client is
// gone altogether.
type AttachStreams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Closed         <-chan struct{}
}

// ListOptions is what GET /containers/json asks for. Limit 0 is no limit.
type ListOptions struct {
	All, Size bool
	Limit     int
	Filters   Filters
}

// StopOptions: nil Timeout means the container's own (10 s by default), a
// negative one waits without end. Signal "" is the container's own.
type StopOptions struct {
	Signal  string
	Timeout *int // seconds
}

// RemoveOptions is what DELETE /containers/{id} asks for.
type RemoveOptions struct {
	Force, Volumes, Link bool
}

// LogOptions is what GET /containers/{id}/logs asks for. Zero Since and Until
// are open ends; Tail < 0 is all.
type LogOptions struct {
	Stdout, Stderr, Follow, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int
}

// LogMessage is one record of a container's log.
type LogMessage struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Line   []byte // with its newline, or without for a part of a longer line
	Attrs  map[string]string
}

// WaitResult is how a wait ended. Err is set where the wait itself failed.
type WaitResult struct {
	ExitCode int
	Err      error
}

// ExecOptions is what POST /containers/{id}/exec asks for.
type ExecOptions struct {
	container.ExecCreateRequest
}

// ExecStartOptions is what POST /exec/{id}/start asks for; Streams is nil when
// detached, else as in AttachOptions.
type ExecStartOptions struct {
	Detach      bool
	Tty         bool
	ConsoleSize *[2]uint // height, width
	Streams     func(terminal bool) (AttachStreams, error)
}

// PullOptions is what POST /images/create asks for.
type PullOptions struct {
	Ref      string // repository with tag or digest, as typed; "" tag = latest
	All      bool
	Platform *ocispec.Platform
	Auth     registry.AuthConfig
	Progress func(Progress)
}

// Progress is one step of a pull, load or push, in docker's words. ID is the
// short digest of a layer, or "" for a line about the whole.
type Progress struct {
	ID             string
	Action         string
	Current, Total int64 // bytes; 0 where there is no bar
}

// PullResult is what a pull ended with.
type PullResult struct {
	Digest string // of what the reference points to
	Newer  bool   // false: the image was up to date
	Ref    string // the familiar name that was pulled, with its tag or digest
}

// EventOptions is what GET /events asks for. Zero times are open: no Since
// means from now on, no Until means without end.
type EventOptions struct {
	Since, Until time.Time
	Filters      Filters
}
