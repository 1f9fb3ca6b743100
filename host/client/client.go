package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"dhow/internal/errdefs"
)

// Client calls the dhowd that listens on a socket. It holds no connection
// between calls.
type Client struct {
	socket string
	http   http.Client
}

// New returns a client of the dhowd on the given unix socket.
func New(socket string) *Client {
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Ping reports whether a dhowd listens. The error is Unavailable if none does.
func (c *Client) Ping(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	return conn.Close()
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errdefs.Wrap(errdefs.Unavailable, err, "dhowd does not run (nothing answers on %s)", c.socket)
}

// Status asks for the machine's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	resp, err := c.do(ctx, http.MethodGet, "/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, errdefs.Wrap(errdefs.Unavailable, err, "dhowd did not answer as expected: it may be of another version")
	}
	return s, nil
}

// Start starts the machine, or waits for a start in progress, and returns when
// the agent has answered. progress (nil for none) is told each step. The end of
// ctx ends the waiting, not the start.
func (c *Client) Start(ctx context.Context, progress func(step string)) error {
	return c.stream(ctx, "/v1/start", progress)
}

// StopOptions say how to stop a machine.
type StopOptions struct {
	Force   bool          // power off at once: containers get no signal
	Timeout time.Duration // how long containers get to end, whole seconds; 0 = dhowd's default
}

func (o StopOptions) query() string {
	v := url.Values{}
	if o.Force {
		v.Set("force", "1")
	}
	if o.Timeout > 0 {
		v.Set("timeout", strconv.Itoa(int((o.Timeout+time.Second-1)/time.Second)))
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

// Stop stops the machine and returns when it has ended.
func (c *Client) Stop(ctx context.Context, o StopOptions, progress func(step string)) error {
	return c.stream(ctx, "/v1/stop"+o.query(), progress)
}

// Quit stops the machine and ends dhowd. It returns when dhowd has let go of
// the machine's files.
func (c *Client) Quit(ctx context.Context, o StopOptions, progress func(step string)) error {
	return c.stream(ctx, "/v1/quit"+o.query(), progress)
}

func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://dhowd"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		var e Event
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(b, &e) == nil && e.Error != "" {
			return nil, errdefs.New(e.Class, "%s", e.Error)
		}
		return nil, errdefs.New(errdefs.Internal, "dhowd answered %s", resp.Status)
	}
	return resp, nil
}

func (c *Client) stream(ctx context.Context, path string, progress func(string)) error {
	resp, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e Event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			return errdefs.Wrap(errdefs.Unavailable, err, "dhowd did not answer as expected: it may be of another version")
		}
		switch {
		case e.Error != "":
			return errdefs.New(e.Class, "%s", e.Error)
		case e.Done:
			return nil
		case progress != nil:
			progress(e.Step)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = in.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return errdefs.Wrap(errdefs.Unavailable, err, "dhowd ended before it was done; see its log")
}

// unavailable reports whether err means that nothing listens.
func unavailable(err error) bool {
	return errdefs.Is(err, errdefs.Unavailable) && !errors.Is(err, context.DeadlineExceeded)
}
