//go:build linux

package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

var update = flag.Bool("update", false, "write the golden answers of testdata/shape anew")

// TestShapes compares the answers to each version's clients with golden ones.
func TestShapes(t *testing.T) {
	r := newRig(t)
	r.boxOf("box", &container.Config{Image: "hello-world", Cmd: []string{"echo", "a"}, Hostname: "host"})
	for noun, c := range map[string]struct {
		path     string
		versions string
	}{
		"container":  {"/containers/box/json", "1.41 1.44 1.45 1.47 1.51 1.52"},
		"containers": {"/containers/json?all=1", "1.41 1.52"},
		"image":      {"/images/hello-world/json", "1.41 1.43 1.44 1.45 1.47 1.49 1.50 1.51 1.52"},
		"images":     {"/images/json", "1.41 1.43 1.44 1.47 1.50 1.51 1.52"},
		"info":       {"/info", "1.41 1.44 1.46 1.47 1.48 1.49 1.50 1.52"},
	} {
		for v := range strings.FieldsSeq(c.versions) {
			t.Run(noun+" by "+v, func(t *testing.T) {
				_, body := r.do("GET", "/v"+v+c.path, "")
				file := filepath.Join("testdata", "shape", noun+"-"+v+".json")
				if *update {
					var b bytes.Buffer
					if err := json.Indent(&b, []byte(body), "", "\t"); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(decode(t, body), decode(t, string(want))) {
					t.Errorf("got %s\nwant %s", body, want)
				}
			})
		}
	}
}
