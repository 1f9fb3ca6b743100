//go:build linux

package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"go.etcd.io/bbolt"

	"dhow/internal/errdefs"
)

// raw returns the stored record of id, and stores what edit makes of it.
func (w *world) raw(id string, edit func(map[string]any) any) (text string) {
	w.t.Helper()
	if err := w.opts.DB.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketContainers))
		text = string(b.Get([]byte(id)))
		if edit == nil {
			return nil
		}
		var r map[string]any
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return err
		}
		v := edit(r)
		text, _ = v.(string)
		if v, ok := v.(map[string]any); ok {
			raw, err := json.Marshal(v)
			if err != nil {
				return err
			}
			text = string(raw)
		}
		return b.Put([]byte(id), []byte(text))
	}); err != nil {
		w.t.Fatal(err)
	}
	return text
}

func TestARecordThatCannotBeUsedHurtsItsOwnContainerOnly(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(map[string]any) any
		why   string // the start of it
		named string // "": by its ID
	}{
		"no JSON":        {func(map[string]any) any { return "{" }, "the container's record cannot be read: ", ""},
		"empty":          {func(map[string]any) any { return "{}" }, "the container's record cannot be read: it is not complete", ""},
		"another type":   {func(r map[string]any) any { r["HostConfig"] = "x"; return r }, "the container's record cannot be read: ", "bad"},
		"no config":      {func(r map[string]any) any { r["Config"] = nil; return r }, "the container's record cannot be read: it is not complete", "bad"},
		"another's name": {func(r map[string]any) any { r["Name"], r["Config"] = "good", nil; return r }, "the container's record cannot be read: it is not complete", ""},
		"another status": {func(r map[string]any) any { r["State"].(map[string]any)["Status"] = "asleep"; return r }, `the container's record cannot be read: its status "asleep" is not known`, "bad"},
		"log options": {func(r map[string]any) any {
			r["HostConfig"].(map[string]any)["LogConfig"] = map[string]any{"Type": "json-file", "Config": map[string]string{"colour": "blue"}}
			return r
		}, "unknown log opt 'colour' for json-file log driver", "bad"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			good, bad := w.create("good", container.HostConfig{}, "hello"), w.create("bad", container.HostConfig{}, "hello")
			w.start(bad)
			w.wait(bad, container.WaitConditionNotRunning)
			stored := w.raw(bad, c.edit)
			w.reopen()
			in := w.inspect(bad)
			want := c.named
			if want == "" {
				want = shortID(bad)
			}
			if s := in.State; s.Status != "dead" || !s.Dead || !strings.HasPrefix(s.Error, c.why) || in.Name != "/"+want {
				t.Errorf("%s %+v", in.Name, s)
			}
			if list, err := w.ContainerList(t.Context(), ListOptions{All: true}); err != nil || len(list) != 2 {
				t.Errorf("%+v, %v", list, err)
			}
			wantErr(t, w.ContainerStart(t.Context(), bad), errdefs.Conflict, "container is marked for removal and cannot be started: "+in.State.Error)
			wantErr(t, w.ContainerRename(t.Context(), bad, "other"), errdefs.Conflict, "container "+bad+" is dead and cannot be renamed: remove it")
			w.start(good)
			w.wait(good, container.WaitConditionNotRunning)
			if got := w.raw(bad, nil); got != stored {
				t.Errorf("the record is changed: %s", got)
			}
			w.reopen() // it is there as long as nobody removes it
			if err := w.ContainerRemove(t.Context(), want, RemoveOptions{}); err != nil {
				t.Error(err)
			}
			w.reopen()
			if _, err := w.ContainerInspect(t.Context(), bad, false); !errdefs.Is(err, errdefs.NotFound) || w.store.containers[bad] {
				t.Errorf("%v, data %v", err, w.store.containers[bad])
			}
			if s := w.inspect(good).State; s.Status != "exited" || s.ExitCode != 3 {
				t.Errorf("%+v", s)
			}
		})
	}
}
