// A relay as signaling servers in Go are written: topics and peers in sync.Map; each peer has a goroutine that reads, and
// another that writes what it finds in the peer's channel. The only argument is the port.
package main

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	sendBuffer  = 64
	sendTimeout = 100 * time.Millisecond
)

type message struct {
	Type    string          `json:"type"`
	To      string          `json:"to,omitempty"`
	From    string          `json:"from,omitempty"`
	SelfID  string          `json:"selfId,omitempty"`
	PeerID  string          `json:"peerId,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
	MsgID   string          `json:"msgId,omitempty"`
	Code    string          `json:"code,omitempty"`
	Message string          `json:"message,omitempty"`
}

type entry struct {
	ID string `json:"id"`
}

type peerList struct {
	Type  string  `json:"type"`
	Peers []entry `json:"peers"`
}

type peer struct {
	id   string
	send chan []byte
}

var (
	topics   sync.Map // of *sync.Map of *peer
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	letters  = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)
)

func newID() string {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		log.Fatal(err)
	}
	return letters.EncodeToString(random[:])
}

func encode(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	return data
}

// offer reports whether the peer's channel took the data at once.
func (p *peer) offer(data []byte) bool {
	select {
	case p.send <- data:
		return true
	default:
		return false
	}
}

// deliver reports whether the peer's channel took the data in time.
func (p *peer) deliver(data []byte) bool {
	if p.offer(data) {
		return true
	}
	timer := time.NewTimer(sendTimeout)
	defer timer.Stop()
	select {
	case p.send <- data:
		return true
	case <-timer.C:
		return false
	}
}

func (p *peer) write(conn *websocket.Conn, done <-chan struct{}) {
	for {
		select {
		case data := <-p.send:
			if conn.WriteMessage(websocket.TextMessage, data) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

func (p *peer) relay(data []byte, members *sync.Map) {
	var received message
	if json.Unmarshal(data, &received) != nil {
		return
	}
	code, text := "target_not_found", "peer not found"
	if target, found := members.Load(received.To); found {
		relayed := message{Type: received.Type, From: p.id, Payload: received.Payload, MsgID: received.MsgID}
		if target.(*peer).deliver(encode(relayed)) {
			return
		}
		code, text = "dropped", "message dropped"
	}
	p.offer(encode(message{Type: "error", Code: code, Message: text, MsgID: received.MsgID}))
}

func inform(members *sync.Map, data []byte) {
	members.Range(func(_, member any) bool {
		member.(*peer).offer(data)
		return true
	})
}

func serve(writer http.ResponseWriter, request *http.Request) {
	name := strings.TrimPrefix(request.URL.Path, "/ws/")
	conn, err := upgrader.Upgrade(writer, request, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	self := &peer{id: newID(), send: make(chan []byte, sendBuffer)}
	done := make(chan struct{})
	defer close(done)
	go self.write(conn, done)

	found, _ := topics.LoadOrStore(name, &sync.Map{})
	members := found.(*sync.Map)
	others := make([]entry, 0)
	members.Range(func(id, _ any) bool {
		others = append(others, entry{id.(string)})
		return true
	})
	self.offer(encode(message{Type: "welcome", SelfID: self.id}))
	self.offer(encode(peerList{"peer-list", others}))
	inform(members, encode(message{Type: "peer-joined", PeerID: self.id}))
	members.Store(self.id, self)

	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			break
		}
		self.relay(data, members)
	}

	members.Delete(self.id)
	empty := true
	inform(members, encode(message{Type: "peer-left", PeerID: self.id}))
	members.Range(func(_, _ any) bool {
		empty = false
		return false
	})
	if empty {
		topics.Delete(name) // A peer that joins at this moment is lost to later ones.
	}
}

func main() {
	http.HandleFunc("/ws/", serve)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
