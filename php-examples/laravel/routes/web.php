<?php

use App\Events\OrderPlaced;
use App\Events\OrderShipped;
use App\Models\Order;
use App\Models\User;
use App\Notifications\ParcelOnItsWay;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Auth;
use Illuminate\Support\Facades\DB;
use Illuminate\Support\Facades\Route;

Route::get('/', function () {
    return Auth::check() ? view('dashboard', ['user' => Auth::user(), 'orders' => Order::all()]) : view('login', ['users' => User::all()]);
});

Route::get('/login/{user}', function (User $user) {
    Auth::login($user);

    return redirect('/');
});

Route::post('/orders', function (Request $request) {
    abort_unless(Auth::check(), 403);

    return DB::transaction(function () use ($request) {
        $order = Order::create(['user_id' => Auth::id(), 'item' => substr((string) $request->input('item'), 0, 80), 'state' => 'placed']);
        broadcast(new OrderPlaced($order))->toOthers();
        // What is rolled back is not announced.
        abort_if($request->input('item') === 'nothing', 422);

        return $order->only('id', 'item', 'state');
    });
});

Route::post('/orders/{order}/ship', function (Order $order) {
    abort_unless(Auth::check(), 403);
    $order->update(['state' => 'shipped']);
    event(new OrderShipped($order));
    User::find($order->user_id)->notify(new ParcelOnItsWay($order->item));

    return $order->only('id', 'item', 'state');
});
