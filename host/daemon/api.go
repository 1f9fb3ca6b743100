package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"time"

	"dhow/host/client"
	"dhow/internal/errdefs"
)

// routes is dhowd's HTTP API; host/client describes it.
func (d *daemon) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", d.getStatus)
	mux.HandleFunc("POST /v1/start", d.postStart)
	mux.HandleFunc("POST /v1/stop", d.postStop)
	mux.HandleFunc("POST /v1/quit", d.postQuit)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, errdefs.New(errdefs.NotFound, "dhowd %s has no %s %s", d.options.Version, r.Method, r.URL.Path))
	})
	return mux
}

func failure(err error) client.Event {
	return client.Event{Error: errdefs.Sentence(err), Class: errdefs.ClassOf(err)}
}

func fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(errdefs.HTTPStatus(errdefs.ClassOf(err)))
	_ = json.NewEncoder(w).Encode(failure(err)) // a client that is gone wants no answer
}

func (d *daemon) getStatus(w http.ResponseWriter, r *http.Request) {
	s := d.machine.status(r.Context())
	s.Version, s.PID = d.options.Version, os.Getpid()
	s.DockerSocket, s.ConsoleLog, s.Log = d.layout.DockerSocket(), d.layout.ConsoleLog(), d.layout.LogFile()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

func (d *daemon) postStart(w http.ResponseWriter, r *http.Request) {
	stream(w, r, d.machine.start)
}

func (d *daemon) postStop(w http.ResponseWriter, r *http.Request) {
	o, err := parseStop(r)
	if err != nil {
		fail(w, err)
		return
	}
	stream(w, r, func(ctx context.Context, progress func(string)) error { return d.machine.stop(ctx, o, progress) })
}

func (d *daemon) postQuit(w http.ResponseWriter, r *http.Request) {
	o, err := parseStop(r)
	if err != nil {
		fail(w, err)
		return
	}
	stream(w, r, func(_ context.Context, progress func(string)) error {
		// Not the request's context: a client that goes away doesn't leave half
		// a dhowd.
		err := d.machine.close(context.Background(), o, progress)
		d.quit() // first, so that the closed listeners are no surprise
		d.release()
		return err
	})
}

// stream runs do and sends its steps and its end as events.
func stream(w http.ResponseWriter, r *http.Request, do func(context.Context, func(string)) error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, enc := http.NewResponseController(w), json.NewEncoder(w)
	send := func(e client.Event) {
		_ = enc.Encode(e) // a client that is gone ends r's context
		_ = out.Flush()
	}
	if err := do(r.Context(), func(step string) { send(client.Event{Step: step}) }); err != nil {
		send(failure(err))
		return
	}
	send(client.Event{Done: true})
}

func parseStop(r *http.Request) (o stopOptions, err error) {
	q := r.URL.Query()
	switch q.Get("force") {
	case "", "0":
	case "1":
		o.force = true
	default:
		return o, errdefs.New(errdefs.Invalid, "invalid force=%q: use 0 or 1", q.Get("force"))
	}
	if t := q.Get("timeout"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 0 || n > 24*3600 {
			return o, errdefs.New(errdefs.Invalid, "invalid timeout=%q: use seconds", t)
		}
		o.grace = time.Duration(n) * time.Second
	}
	return o, nil
}
