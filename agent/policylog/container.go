package policylog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Parser reads lines; see tuple.go.
type Parser interface {
	Parse(line []byte, o *flow.Observation) (ok bool, err error)
}

// Container reads a container's log as the kubelet's runtimes keep it – CRI's
// format or Docker's JSON – and gives the lines in it to a parser. A line in
// neither format goes to the parser as it is.
type Container struct {
	Parser Parser
	part   []byte // of a line that the runtime has broken
}

// maxLine bounds a line that is put together from parts.
const maxLine = 64 << 10

// Parse reads a line; see tuple.go. The time is the runtime's.
func (c *Container) Parse(line []byte, o *flow.Observation) (bool, error) {
	text, at, whole, err := unwrap(line)
	if err != nil {
		return false, err
	}
	if !whole || len(c.part) > 0 {
		if len(c.part)+len(text) > maxLine {
			c.part = nil
			return false, errors.New("a line is too long")
		}
		c.part = append(c.part, text...)
		if !whole {
			return false, nil
		}
		text, c.part = c.part, nil
	}
	ok, err := c.Parser.Parse(text, o)
	if ok && !at.IsZero() {
		o.Time = at.UnixNano()
	}
	return ok, err
}

func unwrap(line []byte) (text []byte, at time.Time, whole bool, err error) {
	if bytes.HasPrefix(line, []byte(`{"log":`)) {
		var d struct {
			Log  string    `json:"log"`
			Time time.Time `json:"time"`
		}
		if err := json.Unmarshal(line, &d); err != nil {
			return nil, at, false, fmt.Errorf("read Docker's JSON: %w", err)
		}
		if !plausible(d.Time) {
			d.Time = time.Time{}
		}
		text = bytes.TrimSuffix([]byte(d.Log), []byte("\n"))
		return text, d.Time, len(text) < len(d.Log), nil
	}
	// time stream tag text
	parts := bytes.SplitN(line, []byte(" "), 4)
	if len(parts) < 4 || string(parts[1]) != "stdout" && string(parts[1]) != "stderr" {
		return line, at, true, nil
	}
	at, err = time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil || !plausible(at) {
		return line, time.Time{}, true, nil
	}
	return parts[3], at, !bytes.HasPrefix(parts[2], []byte("P")), nil
}
