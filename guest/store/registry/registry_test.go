//go:build linux

package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/registry"
	"dhow/internal/errdefs"
)

// fake is a registry whose answers are written by each test. It holds one
// blob and one manifest.
type fake struct {
	*httptest.Server
	mux  *http.ServeMux
	blob []byte
	desc ocispec.Descriptor
	mu   sync.Mutex
	log  []string
}

const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`

func newFake(t *testing.T) *fake {
	f := &fake{mux: http.NewServeMux(), blob: bytes.Repeat([]byte("0123456789abcdef"), 64<<10)}
	f.desc = ocispec.Descriptor{Digest: digest.FromBytes(f.blob), Size: int64(len(f.blob))}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.log = append(f.log, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		f.mu.Unlock()
		f.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// honest adds the honest answers.
func (f *fake) honest() *fake {
	f.mux.HandleFunc("/v2/{$}", func(w http.ResponseWriter, r *http.Request) {})
	f.mux.HandleFunc("/v2/app/manifests/", serveManifest)
	f.mux.HandleFunc("/v2/app/blobs/", f.serveBlob)
	return f
}

func serveManifest(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	_, _ = io.WriteString(w, manifest)
}

func (f *fake) serveBlob(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blob))
}

func (f *fake) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fake) repo(t *testing.T, auth registry.Auth) *registry.Repository {
	t.Helper()
	return client(t).Repository(name(t, f.host()+"/app:v1"), auth)
}

func client(t *testing.T) *registry.Client {
	c := registry.New(registry.Options{
		UserAgent: "dhow/test", ConnectTimeout: time.Second, HeaderTimeout: 300 * time.Millisecond,
		StallTimeout: 300 * time.Millisecond, GiveUp: 3 * time.Second,
	})
	t.Cleanup(c.Close)
	return c
}

func name(t *testing.T, s string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fake) wantBlob(t *testing.T, r *registry.Repository) *registry.Blob {
	t.Helper()
	b := r.Blob(t.Context(), f.desc)
	got, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, f.blob) {
		t.Fatalf("other bytes came: %d of %d", len(got), len(f.blob))
	}
	_ = b.Close()
	return b
}

func apiError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q,"detail":{}}]}`, code, message)
}

func TestManifestAndBlob(t *testing.T) {
	f := newFake(t).honest()
	r := f.repo(t, registry.Auth{})
	raw, d, err := r.Manifest(t.Context(), "v1")
	if err != nil || string(raw) != manifest || d.Digest != digest.FromString(manifest) || d.MediaType != ocispec.MediaTypeImageManifest || d.Size != int64(len(manifest)) {
		t.Errorf("Manifest = %s, %+v, %v", raw, d, err)
	}
	if _, _, err := r.Manifest(t.Context(), d.Digest.String()); err != nil {
		t.Error(err)
	}
	_, _, err = r.Manifest(t.Context(), digest.FromString("other").String())
	if want := "manifest verification failed for digest " + digest.FromString("other").String(); errdefs.Sentence(err) != want || !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("err = %v, want %q", err, want)
	}
	if f.wantBlob(t, r).Resumed() {
		t.Error("an unbroken download is called resumed")
	}
}

func TestBasicAuth(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			apiError(w, 401, "UNAUTHORIZED", "authentication required")
			return
		}
		serveManifest(w, r)
	})
	if _, _, err := f.repo(t, registry.Auth{Username: "me", Password: "secret"}).Manifest(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	for auth, want := range map[registry.Auth]string{
		{}:                                  "no basic auth credentials",
		{Username: "me", Password: "wrong"}: "unauthorized: authentication required",
	} {
		_, _, err := f.repo(t, auth).Manifest(t.Context(), "v1")
		err = registry.Explain(err, name(t, f.host()+"/app:v1"))
		if !errdefs.Is(err, errdefs.Denied) || !strings.Contains(errdefs.Sentence(err), want) {
			t.Errorf("%+v: err = %v, want %q", auth, err, want)
		}
	}
}

// bearer makes the registry want tokens of a token server of its own, at
// another address.
func (f *fake) bearer(t *testing.T, token http.HandlerFunc) *string {
	valid := new(string)
	server := httptest.NewServer(token)
	t.Cleanup(server.Close)
	guard := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+*valid {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token?x=1",service="reg, istry",scope="repository:app:pull"`, server.URL))
				apiError(w, 401, "UNAUTHORIZED", "authentication required")
				return
			}
			next(w, r)
		}
	}
	f.mux.HandleFunc("/v2/{$}", guard(func(http.ResponseWriter, *http.Request) {}))
	f.mux.HandleFunc("/v2/app/manifests/", guard(serveManifest))
	f.mux.HandleFunc("/v2/app/blobs/", guard(f.serveBlob))
	return valid
}

func TestBearerAuth(t *testing.T) {
	f := newFake(t)
	var n atomic.Int32
	valid := new(string)
	var form url.Values
	valid = f.bearer(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.Form
		u, p, _ := r.BasicAuth()
		if u != "" && p != "secret" {
			apiError(w, 401, "UNAUTHORIZED", "incorrect username or password")
			return
		}
		*valid = fmt.Sprint("t", n.Add(1))
		fmt.Fprintf(w, `{"token":%q,"expires_in":60}`, *valid)
	})
	r := f.repo(t, registry.Auth{})
	if _, _, err := r.Manifest(t.Context(), "v1"); err != nil {
		t.Fatal(err)
	}
	if form.Get("scope") != "repository:app:pull" || form.Get("service") != "reg, istry" || form.Get("x") != "1" || form.Has("account") {
		t.Errorf("asked for %v", form)
	}
	f.wantBlob(t, r)
	if n.Load() != 1 {
		t.Errorf("%d tokens for one repository", n.Load())
	}
	*valid = "expired since"
	f.wantBlob(t, r)
	if n.Load() != 2 {
		t.Errorf("%d tokens, want a second one", n.Load())
	}
	if _, _, err := f.repo(t, registry.Auth{Username: "me", Password: "secret"}).Manifest(t.Context(), "v1"); err != nil || form.Get("account") != "me" {
		t.Errorf("err = %v, asked for %v", err, form)
	}
	_, _, err := f.repo(t, registry.Auth{Username: "me", Password: "wrong"}).Manifest(t.Context(), "v1")
	if err = registry.Explain(err, name(t, "x/app")); !errdefs.Is(err, errdefs.Denied) || !strings.Contains(err.Error(), "incorrect username or password") {
		t.Errorf("err = %v", err)
	}
	if _, _, err := f.repo(t, registry.Auth{IdentityToken: "idt"}).Manifest(t.Context(), "v1"); err != nil || form.Get("refresh_token") != "idt" || form.Get("grant_type") != "refresh_token" {
		t.Errorf("err = %v, asked for %v", err, form)
	}
	*valid = "ready"
	before := n.Load()
	if _, _, err := f.repo(t, registry.Auth{RegistryToken: "ready"}).Manifest(t.Context(), "v1"); err != nil || n.Load() != before {
		t.Errorf("err = %v, %d tokens asked for", err, n.Load()-before)
	}
}

func TestCredentialsDoNotFollowRedirects(t *testing.T) {
	f := newFake(t)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the blob store was sent %q", r.Header.Get("Authorization"))
		}
		f.serveBlob(w, r)
	}))
	defer store.Close()
	f.mux.HandleFunc("/v2/{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(401)
	})
	f.mux.HandleFunc("/v2/app/blobs/", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			t.Error("the registry was sent no credentials")
		}
		http.Redirect(w, r, store.URL, http.StatusTemporaryRedirect)
	})
	f.wantBlob(t, f.repo(t, registry.Auth{Username: "u", Password: "p"}))
}

func TestErrorsHaveDockersSentences(t *testing.T) {
	for what, c := range map[string]struct {
		handler http.HandlerFunc
		class   errdefs.Class
		want    string
	}{
		"denied": {func(w http.ResponseWriter, _ *http.Request) {
			apiError(w, 403, "DENIED", "requested access to the resource is denied")
		},
			errdefs.NotFound, "pull access denied for HOST/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		"insufficient scope": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/",error="insufficient_scope"`)
				apiError(w, 401, "UNAUTHORIZED", "authentication required")
			}
		}, errdefs.NotFound, "pull access denied for HOST/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		"manifest unknown": {func(w http.ResponseWriter, _ *http.Request) { apiError(w, 404, "MANIFEST_UNKNOWN", "manifest unknown") },
			errdefs.NotFound, "manifest for HOST/app:v1 not found: manifest unknown: manifest unknown"},
		"bare 404": {http.NotFound, errdefs.NotFound, "manifest for HOST/app:v1 not found: manifest unknown: manifest unknown"},
		"name unknown": {func(w http.ResponseWriter, _ *http.Request) {
			apiError(w, 404, "NAME_UNKNOWN", "repository name not known to registry")
		},
			errdefs.NotFound, "repository HOST/app not found: name unknown: repository name not known to registry"},
		"rate limit": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				w.Header().Set("Retry-After", "600")
				apiError(w, 429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
			}
		}, errdefs.Unavailable, "toomanyrequests: You have reached your pull rate limit."},
		"not a registry": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418); _, _ = io.WriteString(w, "<html>") },
			errdefs.Unavailable, `error parsing HTTP 418 response body: "<html>"`},
		"500": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, errdefs.Unavailable, "received unexpected HTTP status: 500 Internal Server Error"},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake(t)
			f.mux.HandleFunc("/", c.handler)
			_, _, err := f.repo(t, registry.Auth{}).Manifest(t.Context(), "v1")
			err = registry.Explain(err, name(t, f.host()+"/app:v1"))
			if got, want := errdefs.Sentence(err), strings.ReplaceAll(c.want, "HOST", f.host()); got != want || errdefs.ClassOf(err) != c.class {
				t.Errorf("class %q, sentence\n%s, want class %q,\n%s", errdefs.ClassOf(err), got, c.class, want)
			}
		})
	}
}

func TestPassingFailuresAreTriedAgain(t *testing.T) {
	f := newFake(t)
	var n atomic.Int32
	every := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			switch n.Add(1) % 4 {
			case 1:
				w.WriteHeader(503)
			case 2:
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(429)
			case 3:
				panic(http.ErrAbortHandler) // the connection is cut
			default:
				next(w, r)
			}
		}
	}
	f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	f.mux.HandleFunc("/v2/app/manifests/", every(serveManifest))
	f.mux.HandleFunc("/v2/app/blobs/", every(f.serveBlob))
	r := f.repo(t, registry.Auth{})
	if _, _, err := r.Manifest(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	f.wantBlob(t, r)
}

// cut serves parts of the blob and then breaks or stalls.
func (f *fake) cut(ranges bool, broke func(http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := 0
		if s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
			first, _, _ := strings.Cut(s, "-")
			start, _ = strconv.Atoi(first)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)-start))
		if start > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(f.blob)-1, len(f.blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		f.mu.Lock()
		tries := len(f.log)
		f.mu.Unlock()
		end := min(len(f.blob), tries*300_000)
		if end > start {
			_, _ = w.Write(f.blob[start:end])
		}
		if end < len(f.blob) {
			w.(http.Flusher).Flush()
			broke(w, r)
		}
	}
}

func TestBrokenDownloadsGoOn(t *testing.T) {
	reset := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	stall := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for what, c := range map[string]struct {
		ranges, refuses bool
		broke           func(http.ResponseWriter, *http.Request)
	}{"reset": {true, false, reset}, "stall": {true, false, stall}, "ranges are ignored": {false, false, reset}, "ranges are refused": {false, true, reset}} {
		t.Run(what, func(t *testing.T) {
			f := newFake(t)
			f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
			f.mux.HandleFunc("/v2/app/blobs/", f.cut(c.ranges, c.broke))
			if !f.wantBlob(t, f.repo(t, registry.Auth{})).Resumed() {
				t.Error("not called resumed")
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if last := f.log[len(f.log)-1]; !c.refuses && !strings.Contains(last, "bytes=") {
				t.Errorf("the last request was %q", last)
			}
		})
	}
}

func TestLyingLengths(t *testing.T) {
	for what, c := range map[string]struct {
		serve func(f *fake) http.HandlerFunc
		want  string
	}{
		"announces less": {func(f *fake) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(f.blob[:100]) }
		}, "unexpected size"},
		"announces more": {func(f *fake) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)+1))
				_, _ = w.Write(append(f.blob, 1))
			}
		}, "unexpected size"},
		"ends early": {func(f *fake) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); _, _ = w.Write(f.blob[:100]) }
		}, ""},
		"another range": {func(f *fake) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)))
					_, _ = w.Write(f.blob[:100])
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Content-Range", "bytes 5-")
				w.WriteHeader(206)
			}
		}, "the registry sent the range"},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake(t)
			f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
			f.mux.HandleFunc("/v2/app/blobs/", c.serve(f))
			began := time.Now()
			got, err := io.ReadAll(f.repo(t, registry.Auth{}).Blob(t.Context(), f.desc))
			if c.want == "" {
				// Each attempt without a new byte counts; they run out.
				if sha256.Sum256(got) == sha256.Sum256(f.blob) || err == nil {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	f := newFake(t)
	f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	f.mux.HandleFunc("/v2/app/blobs/", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length; then too much
		_, _ = w.Write(append(f.blob, f.blob...))
	})
	f.wantBlob(t, f.repo(t, registry.Auth{})) // what is too much is not read
}

func TestDeadRegistries(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts by the kernel's backlog only
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for addr, want := range map[string]string{
		closed.Addr().String(): fmt.Sprintf(`Get "http://%s/v2/": dial tcp %s: connect: connection refused`, closed.Addr(), closed.Addr()),
		silent.Addr().String(): fmt.Sprintf(`Get "http://%s/v2/": net/http: timeout awaiting response headers`, silent.Addr()),
	} {
		began := time.Now()
		_, _, err := client(t).Repository(name(t, addr+"/app"), registry.Auth{}).Manifest(t.Context(), "v1")
		err = registry.Explain(err, name(t, addr+"/app"))
		if errdefs.Sentence(err) != want || !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("err = %v, want %q", err, want)
		}
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("%s took %v with time-outs of 1 s and 0.3 s", addr, d)
		}
	}
}

func TestPlainHTTPForLoopbackOnly(t *testing.T) {
	f := newFake(t).honest()
	var dialed []string
	c := registry.New(registry.Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed = append(dialed, addr)
		return (&net.Dialer{}).DialContext(ctx, network, f.host())
	}})
	defer c.Close()
	for host, ok := range map[string]bool{"localhost:5000": true, "127.1.2.3:5000": true, "[::1]:5000": true, "10.0.0.1:5000": false, "localhost.example.com:5000": false, "docker.io/library": false} {
		dialed = nil
		_, _, err := c.Repository(name(t, host+"/app"), registry.Auth{}).Manifest(t.Context(), "v1")
		if host == "docker.io/library" {
			if len(dialed) != 1 || dialed[0] != "registry-1.docker.io:443" {
				t.Errorf("docker.io: dialed %v", dialed)
			}
			continue
		}
		if (err == nil) != ok {
			t.Errorf("%s: err = %v", host, err)
		}
		if !ok && (len(dialed) != 1 || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")) {
			t.Errorf("%s: dialed %v, err = %v", host, dialed, err)
		}
	}
}

func TestCancelEndsADownload(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	f.mux.HandleFunc("/v2/app/blobs/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)))
		_, _ = w.Write(f.blob[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	gone := errors.New("the client is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	b := f.repo(t, registry.Auth{}).Blob(ctx, f.desc)
	defer func() { _ = b.Close() }()
	if _, err := io.ReadFull(b, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	if _, err := b.Read(make([]byte, 10)); !errors.Is(err, gone) {
		t.Errorf("err = %v", err)
	}
}

func TestManifestThatIsTooLarge(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	f.mux.HandleFunc("/v2/app/manifests/", func(w http.ResponseWriter, r *http.Request) {
		for range 1 << 10 {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	if _, _, err := f.repo(t, registry.Auth{}).Manifest(t.Context(), "v1"); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("err = %v, want Invalid", err)
	}
}
