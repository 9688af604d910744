<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="csrf-token" content="{{ csrf_token() }}">
<meta name="user" content="{{ $user->id }}">
<meta name="app-key" content="{{ config('realtime.app.key') }}">
<meta name="hub" content="{{ env('HUB_ADDRESS', '') }}">
<title>Orders</title>
<style>
    body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2430; }
    main { display: grid; grid-template-columns: 2fr 1fr; gap: 2rem; }
    h1 small { font-size: 1rem; font-weight: normal; color: #5b6776; }
    li { padding: .25rem 0; } li.shipped { color: #1a7f4b; }
    input, button { font: inherit; padding: .25rem .5rem; }
    #state { float: right; } #state.connected { color: #1a7f4b; }
</style>
<span id="state">connecting</span>
<h1>Orders <small>{{ $user->name }}</small></h1>
<main>
    <section>
        <form id="new"><input name="item" placeholder="What is ordered" required> <button>Order</button></form>
        <ul id="orders">
            @foreach ($orders as $order)
                <li data-id="{{ $order->id }}" class="{{ $order->state }}">{{ $order->item }} <button>Ship</button></li>
            @endforeach
        </ul>
    </section>
    <aside>
        <h2>Here now</h2>
        <ul id="members"></ul>
        <p id="typing"></p>
        <h2>For you</h2>
        <ul id="inbox"></ul>
    </aside>
</main>
<script type="module" src="/build/app.js"></script>
