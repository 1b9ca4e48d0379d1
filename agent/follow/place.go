package follow

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Memory is what one opening of a source leaves to the next. Share it between
// them; the zero value is ready.
type Memory struct {
	place   *place
	missing bool // there was no file before: what it holds then is new
}

// place is how far a log was read.
type place struct {
	Path   string    `json:"path"`
	ID     fileID    `json:"id"`
	Offset int64     `json:"offset"`
	Head   []byte    `json:"head"` // the file's first bytes
	Saved  time.Time `json:"saved"`
}

// fileOf is where the place of a source is kept.
func (o *Options) placeFile() string {
	return filepath.Join(o.StateDir, "log-"+strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '_'
		}
		return r
	}, o.Name)+".json")
}

// loadPlace finds where the last reading ended; nil if nowhere.
func (o *Options) loadPlace() (*place, error) {
	if o.Memory.place != nil || o.StateDir == "" {
		return o.Memory.place, nil
	}
	b, err := os.ReadFile(o.placeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the log's place: %w", err)
	}
	var p place
	if err := json.Unmarshal(b, &p); err != nil || p.Offset < 0 || len(p.Head) > headLength {
		return nil, fmt.Errorf("read the log's place from %s: damaged", o.placeFile())
	}
	return &p, nil
}

// keep remembers the place, on disk where there is one. The file is replaced
// whole, so that a crash leaves the one before.
func (o *Options) keep(p *place) error {
	o.Memory.place = p
	if o.StateDir == "" {
		return nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	temporary := o.placeFile() + ".new"
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("keep the log's place: %w", err)
	}
	if err := os.Rename(temporary, o.placeFile()); err != nil {
		return fmt.Errorf("keep the log's place: %w", err)
	}
	return nil
}
