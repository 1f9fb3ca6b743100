package usernet

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// The library logs to logrus's global logger: route what matters to ours.
var (
	routeOnce sync.Once
	routeTo   atomic.Pointer[slog.Logger]
)

func routeLog(to *slog.Logger) {
	routeTo.Store(to)
	routeOnce.Do(func() {
		logrus.SetOutput(io.Discard)
		logrus.SetLevel(logrus.WarnLevel)
		logrus.AddHook(hook{})
	})
}

type hook struct{}

func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel, logrus.FatalLevel, logrus.PanicLevel}
}

func (hook) Fire(e *logrus.Entry) error {
	// Even its errors are one connection's: a device unplugged, a peer gone.
	routeTo.Load().Log(context.Background(), slog.LevelDebug, "network: "+e.Message)
	return nil
}
