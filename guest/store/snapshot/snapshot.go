//go:build linux

package snapshot

import (
	"context"
	"time"

	"dhow/internal/errdefs"
)

// Kind says in which part of its life a snapshot is.
type Kind uint8

// The kinds. A snapshot starts as Active or View; only an Active one can
// become Committed.
const (
	Active Kind = iota + 1
	View
	Committed
)

func (k Kind) String() string {
	switch k {
	case Active:
		return "active"
	case View:
		return "view"
	case Committed:
		return "committed"
	}
	return "unknown"
}

// Info describes a snapshot. Name is the key of an active one or a view.
type Info struct {
	Name    string
	Kind    Kind
	Parent  string // name of the committed parent, "" if there is none
	Labels  map[string]string
	Created time.Time
	Updated time.Time
}

// Usage is what a snapshot takes by itself, without its parents.
type Usage struct {
	Inodes int64
	Size   int64 // bytes on disk: blocks, as du counts
	Bytes  int64 // bytes of regular files, as ls counts; each hard link once
}

// Add returns the sum of two usages.
func (u Usage) Add(v Usage) Usage {
	return Usage{u.Inodes + v.Inodes, u.Size + v.Size, u.Bytes + v.Bytes}
}

// Mount says how to mount a file system: mount(Source, Target, Type, …), with
// the options as in fstab. Target is relative to the root of the tree, "" for
// the root itself. If Dir is not empty, the caller must be in that directory
// when it calls mount(2): relative paths in Options count from there.
type Mount struct {
	Type    string
	Source  string
	Target  string
	Options []string
	Dir     string
}

// Snapshotter is a set of snapshots.
//
// All methods may be called from many goroutines. Keys and names share one
// name space.
//
// Errors: an unknown key or parent is NotFound; a key or name that is taken is
// Conflict wrapping ErrExists; the wrong kind is Invalid.
type Snapshotter interface {
	// Stat describes the snapshot of that key or name.
	Stat(ctx context.Context, key string) (Info, error)

	// Update replaces the labels of the snapshot info.Name by info.Labels and
	// returns the result. Nothing else changes but Updated.
	Update(ctx context.Context, info Info) (Info, error)

	// Usage measures an active snapshot by walking it, and returns what was
	// recorded for a committed one. A view uses nothing.
	Usage(ctx context.Context, key string) (Usage, error)

	// Mounts returns the mounts of an active snapshot or a view, as Prepare or
	// View returned them. It may be called any number of times.
	Mounts(ctx context.Context, key string) ([]Mount, error)

	// Prepare makes an active snapshot on a committed parent, or an empty one
	// if parent is "".
	Prepare(ctx context.Context, key, parent string, opts ...Opt) ([]Mount, error)

	// View makes a read-only snapshot of a committed parent.
	View(ctx context.Context, key, parent string, opts ...Opt) ([]Mount, error)

	// Commit turns the active snapshot key into the committed snapshot name;
	// key is gone afterwards, and an error leaves it as it was. WithParent
	// gives a snapshot that was prepared without a parent its parent now, so
	// that layers can be unpacked before the ones below them are there. What
	// was written must be durable before: Commit syncs only metadata.
	Commit(ctx context.Context, name, key string, opts ...Opt) error

	// Remove removes a snapshot of any kind. One that is the parent of others
	// is refused as Conflict wrapping ErrHasChildren.
	Remove(ctx context.Context, key string) error

	// Walk calls fn for all snapshots, in the order of their names, until fn
	// fails. fn may use the snapshotter only through ctx.
	Walk(ctx context.Context, fn func(context.Context, Info) error) error

	// Cleanup frees the space of removed snapshots.
	Cleanup(ctx context.Context) error

	// Close releases what the snapshotter holds. Snapshots stay.
	Close() error
}

// Opt sets something of a snapshot as it is made or committed.
type Opt func(*Options)

// Options is what Opts set; for implementations.
type Options struct {
	Labels map[string]string
	Parent *string // nil: as prepared
	Usage  *Usage  // nil: Commit measures it
}

// Apply returns the Options of opts.
func Apply(opts []Opt) Options {
	var o Options
	for _, f := range opts {
		f(&o)
	}
	return o
}

// WithLabels sets the labels. Commit without it keeps those of the active
// snapshot.
func WithLabels(labels map[string]string) Opt {
	return func(o *Options) { o.Labels = labels }
}

// WithParent, for Commit, sets the parent of a snapshot that was prepared
// without one. To name the parent that it has is allowed, any other is Invalid.
func WithParent(name string) Opt {
	return func(o *Options) { o.Parent = &name }
}

// WithUsage, for Commit, gives the usage, so that Commit need not walk the
// files.
func WithUsage(u Usage) Opt {
	return func(o *Options) { o.Usage = &u }
}

// LabelVolatile, set to any value when a snapshot is prepared, says that its
// content need not survive a crash of the machine: fsync inside it does
// nothing, and unmounting does not wait for the disk. It is for containers that
// are removed when they end.
const LabelVolatile = "dhow.volatile"

// Cause is one of the reasons that callers tell apart by errors.Is.
type Cause string

func (c Cause) Error() string { return "snapshot: " + string(c) }

// The causes.
const (
	ErrExists      Cause = "exists"
	ErrHasChildren Cause = "has children"
)

// NotFound returns the error for a key that is not there.
func NotFound(key string) error {
	return errdefs.New(errdefs.NotFound, "snapshot %s does not exist", key)
}

// Exists returns the error for a key or name that is taken.
func Exists(key string) error {
	return errdefs.Wrap(errdefs.Conflict, ErrExists, "snapshot %s already exists", key)
}

// HasChildren returns the error for the removal of a parent.
func HasChildren(key string) error {
	return errdefs.Wrap(errdefs.Conflict, ErrHasChildren, "snapshot %s cannot be removed: it has children", key)
}

// WrongKind returns the error for an operation on a snapshot of another kind.
func WrongKind(key string, is Kind, op string) error {
	return errdefs.New(errdefs.Invalid, "snapshot %s is %s: cannot %s", key, is, op)
}

// CheckKey returns Invalid for a key that cannot be stored.
func CheckKey(key string) error {
	if key == "" {
		return errdefs.New(errdefs.Invalid, "a snapshot needs a name")
	}
	if len(key) > maxKey {
		return errdefs.New(errdefs.Invalid, "snapshot name of %d bytes: at most %d are allowed", len(key), maxKey)
	}
	for i := range len(key) {
		if key[i] == 0 {
			return errdefs.New(errdefs.Invalid, "snapshot name %q holds a zero byte", key)
		}
	}
	return nil
}

const maxKey = 4096
