//go:build linux

package engine

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	"dhow/internal/errdefs"
)

// ContainerList lists containers, the youngest first.
func (e *Engine) ContainerList(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	q, err := e.listQuery(ctx, o)
	if err != nil {
		return nil, err
	}
	list := []container.Summary{}
	now := time.Now()
	for _, b := range e.all() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := b.copy()
		if b.isRemoved() || !q.wants(b, &r) {
			continue
		}
		s, err := e.summary(ctx, q, b, &r, now)
		if err != nil {
			return nil, err
		}
		if list = append(list, s); o.Limit > 0 && len(list) == o.Limit {
			break
		}
	}
	return list, nil
}

// listQuery is a list's options, looked up.
type listQuery struct {
	ListOptions
	exited        []int
	before, since time.Time
	ancestors     map[digest.Digest]bool // nil: not asked for
	images        map[digest.Digest]int64
	names         map[string]digest.Digest // what an image's name is now, by name as typed
}

func (e *Engine) listQuery(ctx context.Context, o ListOptions) (*listQuery, error) {
	q := &listQuery{ListOptions: o, names: map[string]digest.Digest{}, images: map[digest.Digest]int64{}}
	f := o.Filters
	if err := f.check("ancestor", "before", "exited", "id", "isolation", "label", "name", "status", "health",
		"since", "volume", "network", "is-task", "publish", "expose"); err != nil {
		return nil, err
	}
	for _, v := range f.values("exited") {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errdefs.Wrap(errdefs.Invalid, err, "invalid filter 'exited=%s'", v)
		}
		q.exited = append(q.exited, n)
	}
	for _, v := range f.values("status") {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return nil, errdefs.New(errdefs.Invalid, "%s", err.Error())
		}
		q.All = true
	}
	for _, v := range f.values("health") {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return nil, errdefs.New(errdefs.Invalid, "%s", err.Error())
		}
	}
	if _, err := f.boolean("is-task", false); err != nil {
		return nil, err
	}
	for _, w := range []struct {
		key string
		at  *time.Time
	}{{"before", &q.before}, {"since", &q.since}} {
		for _, v := range f.values(w.key) {
			b, err := e.get(v)
			if err != nil {
				return nil, err
			}
			*w.at = b.copy().Created
		}
	}
	if len(f["ancestor"]) > 0 {
		q.ancestors = map[digest.Digest]bool{}
		for _, v := range f.values("ancestor") {
			img, err := e.o.Store.Get(ctx, v)
			if err != nil {
				continue // no image, no container of it
			}
			q.ancestors[img.ID] = true
		}
		if err := e.addChildren(ctx, q.ancestors); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// addChildren adds the images that were built on those in set.
func (e *Engine) addChildren(ctx context.Context, set map[digest.Digest]bool) error {
	list, err := e.o.Store.Images(ctx)
	if err != nil {
		return err
	}
	for grown := true; grown; {
		grown = false
		for _, i := range list {
			if i.Parent != "" && set[i.Parent] && !set[i.ID] {
				set[i.ID], grown = true, true
			}
		}
	}
	return nil
}

// wants applies the options to one container.
func (q *listQuery) wants(b *box, r *Record) bool {
	f := q.Filters
	if !r.State.alive() && !q.All && q.Limit <= 0 {
		return false
	}
	switch {
	case !f.match("name", r.Name, "/"+r.Name), !f.match("id", r.ID), !f.labels("label", r.Config.Labels),
		!f.exact("status", string(r.State.Status)), !f.exact("isolation", string(r.HostConfig.Isolation)),
		!f.exact("health", string(container.NoHealthcheck)):
		return false
	case !q.before.IsZero() && !r.Created.Before(q.before), !q.since.IsZero() && !r.Created.After(q.since):
		return false
	case len(q.exited) > 0 && (r.State.alive() || r.State.StartedAt.IsZero() || !slices.Contains(q.exited, r.State.ExitCode)):
		return false
	case q.ancestors != nil && !q.ancestors[r.ImageID]:
		return false
	case f["is-task"]["true"] || f["is-task"]["1"]:
		return false // no swarm, no tasks
	case len(f["publish"]) > 0:
		return false // nothing is published yet
	}
	if len(f["volume"]) > 0 {
		found := false
		for _, m := range mountPoints(r) {
			found = found || f["volume"][m.Name] || f["volume"][m.Destination]
		}
		if !found {
			return false
		}
	}
	if len(f["expose"]) > 0 && !exposes(r, f.values("expose")) {
		return false
	}
	if len(f["network"]) > 0 {
		found := false
		for name, ep := range b.endpointSettings() {
			found = found || f["network"][name] || ep.NetworkID != "" && f.prefix("network", ep.NetworkID)
		}
		return found
	}
	return true
}

// exposes reports whether r exposes one of the ports or port ranges.
func exposes(r *Record, want []string) bool {
	for _, w := range want {
		ports, proto, _ := strings.Cut(w, "/")
		if proto == "" {
			proto = "tcp"
		}
		low, high, isRange := strings.Cut(ports, "-")
		if !isRange {
			high = low
		}
		from, err1 := strconv.Atoi(low)
		to, err2 := strconv.Atoi(high)
		if err1 != nil || err2 != nil {
			continue
		}
		for p := range r.Config.ExposedPorts {
			if n := int(p.Num()); string(p.Proto()) == proto && n >= from && n <= to {
				return true
			}
		}
	}
	return false
}

// summary is what `ps` shows of a container.
func (e *Engine) summary(ctx context.Context, q *listQuery, b *box, r *Record, now time.Time) (container.Summary, error) {
	path, args := command(r.Config)
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: e.imageName(ctx, q, r), ImageID: r.ImageID.String(),
		Command: commandLine(path, args), Created: r.Created.Unix(),
		Ports: []container.PortSummary{}, Labels: r.Config.Labels,
		State: r.State.Status, Status: r.State.text(now),
		NetworkSettings:         &container.NetworkSettingsSummary{Networks: b.endpointSettings()},
		Mounts:                  mountPoints(r),
		ImageManifestDescriptor: r.Manifest,
		Health:                  &container.HealthSummary{Status: container.NoHealthcheck},
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	s.HostConfig.Annotations = r.HostConfig.Annotations
	if r.State.alive() {
		for p := range r.Config.ExposedPorts {
			s.Ports = append(s.Ports, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		slices.SortFunc(s.Ports, func(a, b container.PortSummary) int { return int(a.PrivatePort) - int(b.PrivatePort) })
	}
	if q.Size {
		rw, root, err := e.sizes(ctx, q.images, r)
		if err != nil {
			return s, err
		}
		s.SizeRw, s.SizeRootFs = rw, root
	}
	return s, nil
}

// imageName is the name that the container was made with, as long as that is
// still the same image; else the image's ID.
func (e *Engine) imageName(ctx context.Context, q *listQuery, r *Record) string {
	name := r.Config.Image
	now, known := q.names[name]
	if !known {
		if img, err := e.o.Store.Get(ctx, name); err == nil {
			now = img.ID
		}
		q.names[name] = now
	}
	if now == r.ImageID {
		return name
	}
	return r.ImageID.String()
}

// sizes returns what the container itself holds, and that with its image, in
// bytes. images remembers the sizes of images.
func (e *Engine) sizes(ctx context.Context, images map[digest.Digest]int64, r *Record) (rw, root int64, err error) {
	u, err := e.o.Store.ContainerUsage(ctx, r.ID)
	if err != nil {
		return 0, 0, err
	}
	size, known := images[r.ImageID]
	if !known {
		if img, err := e.o.Store.Get(ctx, r.ImageID.String()); err == nil {
			size = img.Size
		}
		images[r.ImageID] = size
	}
	return u.Bytes, u.Bytes + size, nil
}

func commandLine(path string, args []string) string {
	words := []string{path}
	for _, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
