package policylog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// AWS reads the log of the AWS VPC CNI's network policy agent. Verdicts are
// among its other messages, in two forms: as fields of the JSON object, or,
// since v1.2, as text in its message.
type AWS struct{ text *regexp.Regexp }

// NewAWS makes the parser.
func NewAWS() AWS {
	return AWS{regexp.MustCompile(`Flow Info:\s+Src IP:? (\S+) Src Port:? (\d+) Dest IP:? (\S+) Dest Port:? (\d+) Proto:? (\S+) Verdict:? ([A-Z/]+)(?: Direction:? ([a-z]+))?`)}
}

type awsLine struct {
	TS        string `json:"ts"`
	Timestamp string `json:"timestamp"`
	Msg       string `json:"msg"`
	SrcIP     string `json:"Src IP"`
	SrcPort   uint32 `json:"Src Port"`
	DestIP    string `json:"Dest IP"`
	DestPort  uint32 `json:"Dest Port"`
	Proto     string `json:"Proto"`
	Verdict   string `json:"Verdict"`
}

// Parse reads a line; see tuple.go.
func (p AWS) Parse(line []byte, o *flow.Observation) (bool, error) {
	if !bytes.Contains(line, []byte("Flow Info:")) {
		return false, nil
	}
	var l awsLine
	if err := json.Unmarshal(line, &l); err != nil {
		return false, fmt.Errorf("read JSON: %w", err)
	}
	srcPort, dstPort, direction := strconv.FormatUint(uint64(l.SrcPort), 10), strconv.FormatUint(uint64(l.DestPort), 10), ""
	if l.SrcIP == "" {
		m := p.text.FindStringSubmatch(l.Msg)
		if m == nil {
			return false, errors.New("not of the form: Flow Info: Src IP: … Src Port: … Dest IP: … Dest Port: … Proto … Verdict …")
		}
		l.SrcIP, srcPort, l.DestIP, dstPort, l.Proto, l.Verdict, direction = m[1], m[2], m[3], m[4], m[5], m[6], m[7]
	}
	switch l.Verdict {
	case "ACCEPT":
		packet(o, flow.VerdictAllowed)
	case "DENY":
		packet(o, flow.VerdictDenied)
	case "EXPIRED/DELETED": // of its own tracking; says nothing of the packet
		packet(o, flow.VerdictUnknown)
	default:
		return false, fmt.Errorf("verdict %.20q: want ACCEPT or DENY", l.Verdict)
	}
	if l.TS == "" {
		l.TS = l.Timestamp
	}
	stamp(o, time.RFC3339Nano, l.TS)
	if err := tuple(o, l.Proto, l.SrcIP, srcPort, l.DestIP, dstPort); err != nil {
		return false, err
	}
	if d := side(direction); d != flow.DirectionUnknown {
		o.Told = &flow.Told{Direction: d}
	}
	return true, sameFamily(o)
}
