//go:build linux

package engine

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"dhow/guest/runtime"
	"dhow/guest/runtime/cgroup"
	"dhow/guest/store"
	"dhow/guest/store/snapshot"
)

// Store is what the engine needs of guest/store: images, and a writable
// snapshot per container. *store.Store implements it.
type Store interface {
	Pull(ctx context.Context, ref reference.Named, o store.PullOptions) (store.Image, bool, error)
	Login(ctx context.Context, auth store.Auth) (identityToken string, err error)
	Load(ctx context.Context, r io.Reader, progress func(store.Progress)) ([]store.Image, error)
	Images(ctx context.Context) ([]store.Image, error)
	Get(ctx context.Context, nameOrID string) (store.Image, error)
	Tag(ctx context.Context, id digest.Digest, ref reference.Named) error
	Remove(ctx context.Context, nameOrID string, o store.RemoveOptions) ([]store.Removed, error)

	// The calls for containers join the metadata transaction that ctx carries.
	PrepareContainer(ctx context.Context, key string, id digest.Digest) error
	PrepareEphemeral(ctx context.Context, key string, id digest.Digest) error
	RemoveContainer(ctx context.Context, key string) error
	Containers(ctx context.Context) ([]string, error)
	ContainerMounts(ctx context.Context, key string) ([]snapshot.Mount, error)
	ContainerUsage(ctx context.Context, key string) (snapshot.Usage, error)

	// LayerSizes returns the bytes that each layer of an image adds, base first.
	LayerSizes(ctx context.Context, i store.Image) ([]int64, error)
	// Usage is what all images hold, in bytes; Reclaimable is what would be free
	// without the images that used does not report.
	Usage(ctx context.Context) (int64, error)
	Reclaimable(ctx context.Context, used func(digest.Digest) bool) (int64, error)
}

// Runtime is what the engine needs of guest/runtime. The agent adapts
// *runtime.Runtime to it.
type Runtime interface {
	Create(ctx context.Context, c runtime.CreateConfig) (Task, error)
}

// Process is a running program of a container: an exec, or its first process.
type Process interface {
	Pid() int
	Terminal() *os.File // the master; nil without a terminal
	Resize(width, height uint16) error
	Wait() <-chan struct{} // closed when it has ended
	Exit() runtime.Exit    // valid then
}

// Task is a container in the runtime.
type Task interface {
	Process
	Start(ctx context.Context) error
	Signal(ctx context.Context, sig unix.Signal, all bool) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Stats(ctx context.Context) (cgroup.Stats, error)
	Processes() ([]int, error)
	Exec(ctx context.Context, c runtime.ExecConfig) (Process, error)
	Delete(ctx context.Context) error
}

// Network is what the engine needs of guest/network; nil where the agent
// runs without: then the modes none and host work.
type Network interface {
	// Attach joins a process's network namespace with a network.
	Attach(ctx context.Context, a Attach) (Endpoint, error)
	// Detach undoes what Attach did for a container; it may be called twice.
	Detach(ctx context.Context, containerID string) error
	Networks() []NetworkInfo
}

// Attach says which network namespace is joined with which network, and how.
type Attach struct {
	ContainerID string
	Pid         int    // of a process in the network namespace
	Mode        string // a network's name: "bridge", "none", "host"
	MAC, IP     string // asked for; "" = any
}

// Endpoint is a container's place in a network.
type Endpoint struct {
	NetworkID, NetworkName, EndpointID, Gateway, IPAddress string
	IPPrefixLen                                            int
	MacAddress                                             string
	DNS                                                    []string
}

// NetworkInfo is a network.
type NetworkInfo struct {
	ID, Name, Driver, Scope string
	Subnet, Gateway         string // of IPv4; "" = none
	Created                 time.Time
}
