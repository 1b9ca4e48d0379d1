package collector

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/alert"
	"github.com/flowaudit/flowaudit/collector/store"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// alertServer is the service that people ask about alerts. It answers from the
// store, so that every collector knows what the one that tells knows.
type alertServer struct {
	flowauditv1.UnimplementedAlertsServer
	alerting *alerting
	judge    *judge
	blind    func(id string) string // an ID for who must not know what the real one is made of
}

// newBlindness makes IDs that nobody can compute who does not know this
// process' secret.
func newBlindness() func(id string) string {
	secret := make([]byte, sha256.Size)
	_, _ = rand.Read(secret) // never fails
	return func(id string) string {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(id))
		return hex.EncodeToString(h.Sum(nil)[:8])
	}
}

// found is an alert as it shows to the caller, and as it is.
type found struct{ shown, whole alert.Alert }

// ListAlerts implements the Alerts service.
func (s *alertServer) ListAlerts(ctx context.Context, req *flowauditv1.ListAlertsRequest) (*flowauditv1.ListAlertsResponse, error) {
	matchers, err := parseMatchers(req.GetMatchers())
	if err != nil {
		return nil, err
	}
	all, err := s.find(ctx, func(a *alert.Alert) bool {
		recent := a.State == alert.Firing || req.GetSince() != 0 && a.Started.UnixMilli() >= req.GetSince() || req.GetId() != ""
		return recent && strings.HasPrefix(a.ID, req.GetId()) && alert.MatchAll(matchers, a.Labels)
	})
	if err != nil {
		return nil, err
	}
	out := &flowauditv1.ListAlertsResponse{}
	if access.SightOf(ctx).All() { // they name what is in the configuration
		out.Problems = s.alerting.problems()
	}
	for i := range all {
		out.Alerts = append(out.Alerts, alertMessage(&all[i].shown))
	}
	return out, nil
}

// find gives the alerts that are kept, that show, and are wanted as they show,
// the newest first.
func (s *alertServer) find(ctx context.Context, want func(*alert.Alert) bool) ([]found, error) {
	s.alerting.save(ctx) // what has just fired is asked for first
	now := time.Now()
	sight := access.SightOf(ctx)
	var out []found
	acks, err := s.acknowledged(ctx, now)
	if err != nil {
		return nil, err
	}
	err = s.alerting.store.Documents(ctx, alertKind, time.Time{}, func(d store.Document) bool {
		r, err := alert.DecodeRecord(d.Body)
		if err != nil {
			return true
		}
		r.Acknowledged = nil
		if ack, known := acks[r.ID]; known {
			r.Acknowledged = &ack
		}
		if shown, ok := r.Seen(sight, s.blind); ok && want(&shown) {
			out = append(out, found{shown, r.Alert})
		}
		return true
	})
	if err != nil {
		return nil, storeError("read alerts", err)
	}
	slices.SortStableFunc(out, func(a, b found) int {
		return cmp.Or(b.shown.Started.Compare(a.shown.Started), cmp.Compare(a.shown.ID, b.shown.ID))
	})
	return out, nil
}

func (s *alertServer) acknowledged(ctx context.Context, now time.Time) (map[string]alert.Acknowledgment, error) {
	acks, err := s.alerting.acknowledgments(ctx, now)
	if err != nil {
		return nil, storeError("read acknowledgments", err)
	}
	return acks, nil
}

func parseMatchers(texts []string) ([]alert.Matcher, error) {
	var out []alert.Matcher
	for _, text := range texts {
		m, err := alert.ParseMatcher(text)
		if err != nil {
			return nil, invalidArgument(err)
		}
		out = append(out, m)
	}
	return out, nil
}

// one finds the alert that an ID, or the beginning of one, names.
func (s *alertServer) one(ctx context.Context, id string) (found, error) {
	if id == "" {
		return found{}, status.Error(codes.InvalidArgument, "which alert? flowaudit alerts list shows their IDs")
	}
	all, err := s.find(ctx, func(a *alert.Alert) bool { return strings.HasPrefix(a.ID, id) })
	switch {
	case err != nil:
		return found{}, err
	case len(all) == 0:
		return found{}, status.Errorf(codes.NotFound, "there is no alert %s", id)
	case len(all) > 1:
		return found{}, status.Errorf(codes.InvalidArgument, "%d alerts begin with %s: give more of the ID", len(all), id)
	}
	return all[0], nil
}

// defaultAck is how long an acknowledgment holds.
const defaultAck = 24 * time.Hour

// Acknowledge implements the Alerts service.
func (s *alertServer) Acknowledge(ctx context.Context, req *flowauditv1.AcknowledgeRequest) (*flowauditv1.AcknowledgeResponse, error) {
	of, err := s.one(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	a := of.whole
	if err := access.MayWrite(ctx, concerned(&a)...); err != nil {
		return nil, err
	}
	now := time.Now()
	ack := alert.Acknowledgment{By: whoSays(ctx, req.GetBy()), Comment: req.GetComment(), At: now, Until: now.Add(defaultAck)}
	if req.GetUntil() != 0 {
		ack.Until = time.UnixMilli(req.GetUntil())
	}
	if err := s.put(ctx, ackKind, a.ID, now, ack); err != nil {
		return nil, err
	}
	if a.Acknowledged = &ack; !ack.Until.After(now) {
		a.Acknowledged = nil
	}
	shown, _ := a.Seen(access.SightOf(ctx), s.blind) // it showed above
	return &flowauditv1.AcknowledgeResponse{Alert: alertMessage(&shown)}, nil
}

// concerned are the namespaces of whoever an alert is about; none where it is
// about more than its two ends.
func concerned(a *alert.Alert) []string {
	if a.From == nil || a.To == nil {
		return nil
	}
	var out []string
	for _, e := range []*alert.End{a.From, a.To} {
		if e.Namespace != "" {
			out = append(out, e.Namespace)
		}
	}
	return out
}

// whoSays is the reader's name where it is proven, else the one that is given.
func whoSays(ctx context.Context, given string) string {
	if r, ok := access.ReaderOf(ctx); ok {
		return r.Name
	}
	return given
}

// put keeps what somebody says, and lets the engine know.
func (s *alertServer) put(ctx context.Context, kind, id string, now time.Time, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return status.Errorf(codes.Internal, "keep %s: %v", kind, err)
	}
	if err := s.alerting.store.Put(ctx, []store.Document{{Kind: kind, ID: id, Time: now, Body: body}}); err != nil {
		return storeError("keep "+kind, err)
	}
	if err := s.alerting.sync(ctx, now); err != nil {
		return storeError("read what was kept", err)
	}
	return nil
}

// Silence implements the Alerts service.
func (s *alertServer) Silence(ctx context.Context, req *flowauditv1.SilenceRequest) (*flowauditv1.SilenceResponse, error) {
	now := time.Now()
	m := req.GetSilence()
	silence := alert.Silence{ID: m.GetId(), Starts: time.UnixMilli(m.GetStarts()), Ends: time.UnixMilli(m.GetEnds()), By: whoSays(ctx, m.GetBy()), Comment: m.GetComment()}
	if m.GetStarts() == 0 {
		silence.Starts = now
	}
	var err error
	if silence.Matchers, err = parseMatchers(m.GetMatchers()); err != nil {
		return nil, err
	}
	if silence.ID != "" {
		if silence, err = s.change(ctx, silence, now); err != nil {
			return nil, err
		}
	} else {
		var random [4]byte
		_, _ = rand.Read(random[:]) // never fails
		silence.ID = hex.EncodeToString(random[:])
		if err := silence.Validate(); err != nil {
			return nil, invalidArgument(err)
		}
		if !silence.Ends.After(now) {
			return nil, status.Error(codes.InvalidArgument, "the silence would be over already")
		}
	}
	if err := s.put(ctx, silenceKind, silence.ID, now, silence); err != nil {
		return nil, err
	}
	matching, err := s.find(ctx, func(a *alert.Alert) bool { return a.State == alert.Firing && silence.Matches(a, now) })
	if err != nil {
		return nil, err
	}
	return &flowauditv1.SilenceResponse{Silence: silenceMessage(&silence), Matching: uint32(len(matching))}, nil
}

// change is a silence with another end; what is not given stays.
func (s *alertServer) change(ctx context.Context, to alert.Silence, now time.Time) (alert.Silence, error) {
	all, err := s.alerting.silences(ctx, now)
	if err != nil {
		return to, storeError("read silences", err)
	}
	i := slices.IndexFunc(all, func(o alert.Silence) bool { return o.ID == to.ID })
	if i < 0 {
		return to, status.Errorf(codes.NotFound, "there is no silence %s, or it is over", to.ID)
	}
	changed := all[i]
	changed.Ends = to.Ends
	if len(to.Matchers) > 0 {
		changed.Matchers = to.Matchers
	}
	if to.Comment != "" {
		changed.Comment = to.Comment
	}
	return changed, nil
}

// ListSilences implements the Alerts service.
func (s *alertServer) ListSilences(ctx context.Context, _ *flowauditv1.ListSilencesRequest) (*flowauditv1.ListSilencesResponse, error) {
	all, err := s.alerting.silences(ctx, time.Now())
	if err != nil {
		return nil, storeError("read silences", err)
	}
	out := &flowauditv1.ListSilencesResponse{}
	for i := range all {
		out.Silences = append(out.Silences, silenceMessage(&all[i]))
	}
	return out, nil
}

func silenceMessage(s *alert.Silence) *flowauditv1.Silence {
	out := &flowauditv1.Silence{Id: s.ID, Starts: s.Starts.UnixMilli(), Ends: s.Ends.UnixMilli(), By: s.By, Comment: s.Comment}
	for i := range s.Matchers {
		out.Matchers = append(out.Matchers, s.Matchers[i].String())
	}
	return out
}

func alertMessage(a *alert.Alert) *flowauditv1.Alert {
	out := &flowauditv1.Alert{
		Id: a.ID, Rule: a.Rule, Severity: a.Severity, State: flowauditv1.AlertState_ALERT_STATE_FIRING, Summary: a.Summary, Labels: a.Labels, Cluster: a.Cluster,
		From: alertEnd(a.From), To: alertEnd(a.To), Protocol: a.Protocol, Port: uint32(a.Port), Node: a.Node,
		Started: a.Started.UnixMilli(), Since: a.Since.UnixMilli(), Last: a.Last.UnixMilli(), Count: a.Count, Value: a.Value, Times: uint32(a.Times), Peers: a.Peers,
		Explanation: a.Explanation, NearestMiss: a.NearestMiss, Detail: a.Detail, Command: a.Command, Link: a.Link, Runbook: a.Runbook,
		SilencedBy: a.SilencedBy, Undelivered: a.Undelivered,
	}
	if a.State == alert.Resolved {
		out.State, out.Ended = flowauditv1.AlertState_ALERT_STATE_RESOLVED, a.Ended.UnixMilli()
	}
	for _, p := range a.Ports {
		out.Ports = append(out.Ports, uint32(p))
	}
	for _, p := range a.Policies {
		out.Policies = append(out.Policies, &flowauditv1.PolicyRef{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Rule: p.Rule, Side: p.Side})
	}
	if c := a.Change; c != nil {
		out.Change = &flowauditv1.AlertChange{Time: c.Time.UnixMilli(), Kind: c.Kind, Namespace: c.Namespace, Name: c.Name, Author: c.Author, Deleted: c.Deleted}
	}
	if k := a.Acknowledged; k != nil {
		out.Acknowledged = &flowauditv1.Acknowledgment{By: k.By, Comment: k.Comment, At: k.At.UnixMilli(), Until: k.Until.UnixMilli()}
	}
	return out
}

func alertEnd(e *alert.End) *flowauditv1.AlertEnd {
	if e == nil {
		return nil
	}
	return &flowauditv1.AlertEnd{
		Kind: e.Kind, Namespace: e.Namespace, WorkloadKind: e.WorkloadKind, Workload: e.Workload, Pod: e.Pod, Node: e.Node, Address: e.Address, Name: e.String(),
	}
}
