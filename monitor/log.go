package monitor

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Logger makes the logger of the options, which writes to w.
func (o *Options) Logger(w io.Writer) (*slog.Logger, error) {
	level, known := map[string]slog.Level{
		"debug": slog.LevelDebug, "": slog.LevelInfo, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[strings.ToLower(o.LogLevel)]
	if !known {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", o.LogLevel)
	}
	handler := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(o.LogFormat) {
	case "text", "":
		return slog.New(slog.NewTextHandler(w, handler)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, handler)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", o.LogFormat)
}
