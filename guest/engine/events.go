//go:build linux

package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"dhow/internal/errdefs"
)

// event tells what happened to b, with dockerd's attributes.
func (e *Engine) event(b *box, a events.Action, extra map[string]string) {
	r := b.copy()
	attrs := make(map[string]string, len(r.Config.Labels)+len(extra)+2)
	maps.Copy(attrs, r.Config.Labels)
	maps.Copy(attrs, extra)
	if r.Config.Image != "" {
		attrs["image"] = r.Config.Image
	}
	attrs["name"] = r.Name
	e.o.Events.Publish(events.ContainerEventType, a, b.id, attrs)
}

// imageEvent tells what happened to an image. name is what it was called by.
func (e *Engine) imageEvent(id, name string, a events.Action, labels map[string]string) {
	attrs := maps.Clone(labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	if name != "" {
		attrs["name"] = name
	}
	e.o.Events.Publish(events.ImageEventType, a, id, attrs)
}

// Events calls emit for each event that the filters let through.
func (e *Engine) Events(ctx context.Context, o EventOptions, emit func(events.Message) error) error {
	if !o.Since.IsZero() && !o.Until.IsZero() && o.Until.Before(o.Since) {
		return errdefs.New(errdefs.Invalid, "`since` time (%s) cannot be after `until` time (%s)", o.Since.Format(time.RFC3339), o.Until.Format(time.RFC3339))
	}
	since := o.Since
	pastOnly := !o.Until.IsZero() && o.Until.Before(time.Now())
	if pastOnly && since.IsZero() {
		return nil
	}
	sub := e.o.Events.Subscribe(since)
	defer sub.Close()
	var end <-chan time.Time
	if !o.Until.IsZero() && !pastOnly {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		end = t.C
	}
	for {
		if !pastOnly {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-end:
				return nil
			case <-sub.Ready():
			}
		}
		list, ok := sub.Take()
		for _, m := range list {
			if !o.Until.IsZero() && m.TimeNano > o.Until.UnixNano() || !wantEvent(o.Filters, m) {
				continue
			}
			if err := emit(m); err != nil {
				return err
			}
		}
		if !ok {
			return errdefs.New(errdefs.Unavailable, "the reader of events fell too far behind")
		}
		if pastOnly {
			return nil
		}
	}
}

// wantEvent applies dockerd's filters of events.
func wantEvent(f Filters, m events.Message) bool {
	action := string(m.Action)
	eventMatches := len(f["event"]) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(f["event"])), func(want string) bool {
		// Some actions carry an argument, as in "exec_create: sh" and "health_status: healthy".
		return want == action || strings.HasPrefix(action, want+":")
	})
	return eventMatches && f.exact("type", string(m.Type)) && f.exact("scope", m.Scope) &&
		f.labels("label", m.Actor.Attributes) &&
		actor(f, "container", m, events.ContainerEventType) && actor(f, "network", m, events.NetworkEventType) &&
		actor(f, "volume", m, events.VolumeEventType) && actor(f, "daemon", m, events.DaemonEventType) && wantImage(f, m)
}

func actor(f Filters, key string, m events.Message, t events.Type) bool {
	if len(f[key]) == 0 {
		return true
	}
	return m.Type == t && (f.prefix(key, m.Actor.ID) || f.prefix(key, m.Actor.Attributes["name"]))
}

func wantImage(f Filters, m events.Message) bool {
	if len(f["image"]) == 0 {
		return true
	}
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	return f.exact("image", m.Actor.ID) || f.exact("image", name) || f.exact("image", withoutTag(name))
}

// withoutTag drops the tag of a name.
func withoutTag(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(ref)
}
