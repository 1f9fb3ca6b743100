//go:build linux

package seccomp

import (
	"slices"
	"strings"
	"sync"

	"dhow/internal/errdefs"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaults holds the profiles of Default: few sets of capabilities are in use.
var defaults = struct {
	sync.Mutex
	m map[string]*specs.LinuxSeccomp
}{m: map[string]*specs.LinuxSeccomp{}}

// Default is docker's default profile for a container whose bounding set is
// caps ("CAP_CHOWN", …). The result is shared: it must not be changed.
func Default(caps []string) (*specs.LinuxSeccomp, error) {
	sorted := slices.Clone(caps)
	slices.Sort(sorted)
	key := strings.Join(sorted, " ")
	defaults.Lock()
	defer defaults.Unlock()
	if s := defaults.m[key]; s != nil {
		return s, nil
	}
	s, err := moby.GetDefaultProfile(specFor(caps))
	if err != nil {
		return nil, err
	}
	if len(defaults.m) >= maxCached {
		clear(defaults.m)
	}
	defaults.m[key] = s
	return s, nil
}

// Load reads a profile in docker's JSON form, for a container whose bounding
// set is caps.
func Load(body []byte, caps []string) (*specs.LinuxSeccomp, error) {
	s, err := moby.LoadProfile(string(body), specFor(caps))
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "Decoding seccomp profile failed")
	}
	return s, nil
}

// specFor is what the profile's conditions look at.
func specFor(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
