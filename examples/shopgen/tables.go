package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

const (
	seed      = 20260409
	customers = 640
	products  = 96
	orders    = 2400
	sessions  = 1500

	deleted = "\x00" // a field that is empty because somebody emptied it
)

// shop holds the tables; each [][]string begins with its header.
type shop struct {
	customers, products, orders, items [][]string
	events                             []event

	rng   *rand.Rand
	home  []place   // of customer i
	price []int     // of product i, in cents
	group []string  // of product i
	buyer []string  // customer_id of order i, empty for a guest
	day   []int     // of order i, counted from begin
	begin time.Time // first day of the shop's year
}

type place struct{ country, city, postal string }

// event is one line of the web shop's log. Props differ by event, as logs do.
type event struct {
	ID       string         `json:"event_id"`
	At       string         `json:"occurred_at"`
	Session  string         `json:"session_id"`
	Customer *string        `json:"customer_id"`
	Name     string         `json:"event"`
	Product  string         `json:"product_id,omitempty"`
	Order    *int           `json:"order_id,omitempty"`
	Props    map[string]any `json:"props"`
}

func newShop() *shop {
	s := &shop{
		rng:   rand.New(rand.NewPCG(seed, seed)), //nolint:gosec // sample data, the same on every run
		begin: time.Date(2025, time.April, 1, 0, 0, 0, 0, time.UTC),
	}
	s.makeCustomers()
	s.makeProducts()
	s.makeOrders()
	s.makeEvents()
	return s
}

func pick[T any](s *shop, from []T) T { return from[s.rng.IntN(len(from))] }

func (s *shop) chance(p float64) bool { return s.rng.Float64() < p }

// few returns a number from 1, small ones most often, without the floating
// point that processors round differently.
func (s *shop) few(again float64, most int) int {
	n := 1
	for n < most && s.chance(again) {
		n++
	}
	return n
}

// popular returns a product; those at the front sell most.
func (s *shop) popular() int { return min(s.rng.IntN(products), s.rng.IntN(products)) }

func customerID(i int) string { return fmt.Sprintf("C%04d", i+1) }

func productID(i int) string { return fmt.Sprintf("P-%03d", i+1) }

func orderID(i int) int { return 100001 + i }

func cents(c int) string { return fmt.Sprintf("%d.%02d", c/100, c%100) }

func (s *shop) makeCustomers() {
	type country struct {
		code          string
		places        []place
		first, family []string
		familyFirst   bool
	}
	countries := []country{
		{
			"CZ",
			[]place{{"CZ", "Praha", "110 00"}, {"CZ", "Brno", "602 00"}, {"CZ", "Plzeň", "301 00"}},
			[]string{"Jiří", "Tereza", "Ondřej", "Lucie", "Šimon", "Anežka"},
			[]string{"Dvořák", "Černá", "Říha", "Němcová", "Žižka"},
			false,
		},
		{
			"DE",
			[]place{{"DE", "Leipzig", "04109"}, {"DE", "München", "80331"}, {"DE", "Köln", "50667"}},
			[]string{"Jürgen", "Anke", "Björn", "Käthe", "Lukas"},
			[]string{"Müller", "Groß", "Schäfer", "von der Heide", "Weiß"},
			false,
		},
		{
			"GB",
			[]place{{"GB", "London", "SW1A 1AA"}, {"GB", "Leeds", "LS1 4AP"}},
			[]string{"Olivia", "Harry", "Siân", "George"},
			[]string{"O'Brien", "Smith-Jones", "Featherstonehaugh", "Null"},
			false,
		},
		{
			"FR",
			[]place{{"FR", "Lyon", "69001"}, {"FR", "Nîmes", "30000"}},
			[]string{"Zoé", "François", "Hélène", "Noël"},
			[]string{"d'Aubigné", "Lefèvre", "Petit", "Garçon"},
			false,
		},
		{
			"JP",
			[]place{{"JP", "東京", "100-0001"}, {"JP", "大阪", "530-0001"}},
			[]string{"花子", "太郎", "陽菜", "蓮"},
			[]string{"山田", "佐藤", "鈴木"},
			true,
		},
		{
			"GR",
			[]place{{"GR", "Αθήνα", "105 57"}},
			[]string{"Ελένη", "Γιώργος", "Νίκος"},
			[]string{"Παπαδοπούλου", "Γεωργίου"},
			false,
		},
	}
	weights := []int{34, 26, 16, 12, 8, 4} // in percent, as countries

	s.customers = [][]string{{"customer_id", "name", "email", "country", "city", "postal_code", "phone", "signed_up", "newsletter"}}
	for i := range customers {
		c := countries[0]
		for n, j := s.rng.IntN(100), 0; j < len(weights); j++ {
			if n -= weights[j]; n < 0 {
				c = countries[j]
				break
			}
		}
		home := pick(s, c.places)
		first, family := pick(s, c.first), pick(s, c.family)
		name := first + " " + family
		if c.familyFirst {
			name = family + " " + first
		}
		switch {
		case s.chance(0.02):
			name = family + ", " + first
		case s.chance(0.01):
			name = first + ` "` + strings.ToUpper(family[:1]) + `" ` + family
			if c.code == "JP" || c.code == "GR" || c.code == "CZ" {
				name = first + ` "☕" ` + family
			}
		}
		phone := fmt.Sprintf("+%d %03d %03d", 30+s.rng.IntN(60), s.rng.IntN(1000), s.rng.IntN(1000))
		switch {
		case s.chance(0.15):
			phone = ""
		case s.chance(0.08):
			phone = deleted
		}
		email := fmt.Sprintf("%s@example.%s", strings.ToLower(customerID(i)), pick(s, []string{"com", "org", "net"}))
		if s.chance(0.05) {
			email = ""
		}
		signed := s.begin.AddDate(0, 0, -s.rng.IntN(900)).Format(time.DateOnly)
		s.home = append(s.home, home)
		s.customers = append(s.customers, []string{
			customerID(i), name, email, home.country, home.city, home.postal, phone, signed,
			pick(s, []string{"true", "true", "false"}),
		})
	}
}

func (s *shop) makeProducts() {
	groups := []struct {
		name  string
		items []string
		price [2]int // lowest and highest, in cents
	}{
		{"coffee", []string{"Espresso Roast", "Filter Roast", "Decaf", "Single Origin Ethiopia"}, [2]int{790, 1890}},
		{"tea", []string{"Sencha", "Earl Grey", "Rooibos", "Chai"}, [2]int{490, 1490}},
		{"cups", []string{"Cup 8\" saucer", "Mug, enamel", "Tumbler", "Teacup 有田焼"}, [2]int{990, 3490}},
		{"machines", []string{"Moka Pot", "Hand Grinder", "Kettle, gooseneck", "Espresso Machine"}, [2]int{2990, 44900}},
		{"shoes", []string{"Barista Clog", "Kitchen Sneaker"}, [2]int{4990, 8990}},
	}
	s.products = [][]string{{"product_id", "product_name", "category", "price_eur", "weight_g", "launched"}}
	for i := range products {
		g := groups[i%len(groups)]
		price := g.price[0] + s.rng.IntN((g.price[1]-g.price[0])/100+1)*100
		weight := strconv.Itoa(60 + 10*s.rng.IntN(180))
		if s.chance(0.06) {
			weight = "" // not weighed yet
		}
		s.price, s.group = append(s.price, price), append(s.group, g.name)
		s.products = append(s.products, []string{
			productID(i), fmt.Sprintf("%s No. %d", g.items[(i/len(groups))%len(g.items)], 1+i/len(groups)), g.name,
			cents(price), weight, s.begin.AddDate(0, 0, -s.rng.IntN(1500)).Format(time.DateOnly),
		})
	}
}

// makeOrders plants two stories: December sells twice what other months do,
// and shoes bought in Germany come back far more often than anything else.
func (s *shop) makeOrders() {
	notes := []string{
		"Leave at the door.\nThe dog is friendly.",
		"Bitte klingeln, \"Müller\" steht am Schild",
		"gift, no invoice in the box",
		"Firma Žluťoučký kůň\r\nIČO 12345678\r\n2. patro",
		"=SUM(A1:A9)", // what a spreadsheet would take for a formula
		"NULL",
		"deliver on 12/11",
	}
	s.orders = [][]string{{"order_id", "customer_id", "ordered_on", "status", "shipping_eur", "coupon", "note"}}
	s.items = [][]string{{"order_id", "line", "product_id", "quantity", "unit_price_eur", "returned"}}
	for i := range orders {
		n := s.orderDay()
		day := s.begin.AddDate(0, 0, n)
		who := s.rng.IntN(customers)
		customer, country := customerID(who), s.home[who].country
		switch {
		case s.chance(0.03):
			customer, country = "", "" // a guest
		case s.chance(0.004):
			customer, country = fmt.Sprintf("C%04d", 9000+s.rng.IntN(20)), "" // deleted since
		}
		s.buyer, s.day = append(s.buyer, customer), append(s.day, n)
		note := ""
		if s.chance(0.12) {
			note = pick(s, notes)
		}
		coupon := ""
		if s.chance(0.18) {
			coupon = pick(s, []string{"SPRING10", "spring10 ", "WELCOME5", "VIP"})
		}
		status := "delivered"
		switch {
		case s.chance(0.05):
			status = "canceled"
		case day.After(s.begin.AddDate(0, 0, 358)):
			status = pick(s, []string{"paid", "shipped"})
		}
		s.orders = append(s.orders, []string{
			strconv.Itoa(orderID(i)), customer, mixedDate(i, day), status,
			pick(s, []string{"0.00", "3.90", "3.90", "6.90"}), coupon, note,
		})
		for line := range s.few(0.55, 8) {
			p := s.popular()
			price := s.price[p]
			if s.chance(0.1) {
				price = price * 9 / 10
			}
			back := 0.03
			switch {
			case s.group[p] == "shoes" && country == "DE":
				back = 0.46
			case s.group[p] == "shoes":
				back = 0.12
			}
			s.items = append(s.items, []string{
				strconv.Itoa(orderID(i)), strconv.Itoa(line + 1), productID(p),
				strconv.Itoa(s.few(0.3, 12)), cents(price), strconv.FormatBool(status == "delivered" && s.chance(back)),
			})
		}
	}
}

// orderDay returns a day of the year, December twice as likely as the others.
func (s *shop) orderDay() int {
	const december, days = 244, 365 // December 1 is day 244 after April 1
	n := s.rng.IntN(days + 31)
	if n >= days {
		return december + n - days
	}
	return n
}

// mixedDate writes a day as one of the three systems that took orders did.
func mixedDate(order int, day time.Time) string {
	switch order % 10 {
	case 3, 7:
		return day.Format("2.1.2006")
	case 9:
		return day.Format("Jan 2, 2006")
	default:
		return day.Format(time.DateOnly)
	}
}

// makeEvents plants the third story: the campaign "tiktok-summer" brings the
// most visits and hardly a purchase.
func (s *shop) makeEvents() {
	campaigns := []struct {
		name         string
		share        int // of sessions, in percent
		cart, bought float64
	}{
		{"tiktok-summer", 38, 0.11, 0.08},
		{"newsletter", 22, 0.42, 0.55},
		{"search-brand", 25, 0.38, 0.50},
		{"", 15, 0.30, 0.40}, // came by themselves
	}
	for i := range sessions {
		c := campaigns[0]
		for n, j := s.rng.IntN(100), 0; j < len(campaigns); j++ {
			if n -= campaigns[j].share; n < 0 {
				c = campaigns[j]
				break
			}
		}
		carted := s.chance(c.cart)
		bought := carted && s.chance(c.bought)

		// A purchase belongs to an order, and so to its day and its buyer.
		order := s.rng.IntN(orders)
		day, customer := s.rng.IntN(365), ""
		switch {
		case bought:
			day, customer = s.day[order], s.buyer[order]
		case s.chance(0.4):
			customer = customerID(s.rng.IntN(customers))
		}
		at := s.begin.AddDate(0, 0, day).Add(time.Duration(s.rng.IntN(23*3600)) * time.Second)
		session, device := fmt.Sprintf("s%04d", i+1), pick(s, []string{"phone", "phone", "desktop", "tablet"})
		add := func(e event) {
			e.ID = fmt.Sprintf("e%05d", len(s.events)+1)
			e.At = at.Format("2006-01-02T15:04:05.000Z07:00")
			e.Session = session
			if customer != "" {
				e.Customer = &customer
			}
			e.Props["device"] = device
			s.events = append(s.events, e)
			at = at.Add(time.Duration(5000+s.rng.IntN(300_000)) * time.Millisecond)
		}

		visit := map[string]any{}
		if c.name != "" {
			visit["campaign"] = c.name
		}
		product := productID(s.popular())
		add(event{Name: "visit", Props: visit})
		add(event{Name: "view", Product: product, Props: map[string]any{}})
		if carted {
			add(event{Name: "cart", Product: product, Props: map[string]any{"quantity": s.few(0.3, 5)}})
		}
		if bought {
			id := orderID(order)
			add(event{Name: "purchase", Order: &id, Props: map[string]any{"tags": []string{pick(s, []string{"new", "returning"}), device}}})
		}
	}
}
